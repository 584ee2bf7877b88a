"""Memory that ran out is no property of an image: it is let through where all else is the image's failure."""

import errno
import re
from collections.abc import Iterator

# what libraries say that have no class of their own for it
SAID = re.compile(
    r"out of memory|(insufficient|not enough) memory|bad_alloc|(can.?t|cannot|could not|unable to) allocate",
    re.IGNORECASE,
)
SAYS_SO = (RuntimeError, OSError)  # torch's, Pillow's; ValueError and others may quote what an image says


def ran_out(error: BaseException) -> bool:
    """Whether memory ran out: as Python, NumPy, torch, OpenCV or the system tell it, or as the cause."""
    return any(_tells(each) for each in _causes(error))


def let_through(error: BaseException) -> None:
    """Raises it again where memory ran out, for whoever catches everything."""
    if ran_out(error):
        raise error


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__


def _tells(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if getattr(error, "errno", None) == errno.ENOMEM:
        return True
    says = isinstance(error, SAYS_SO) or type(error).__module__.split(".")[0] == "cv2"
    return says and SAID.search(str(error)) is not None
