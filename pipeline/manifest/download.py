"""`download:` of a source: how its addresses of the web and of object stores are read."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.manifest.section import Real, Section, Text, Whole

Seconds = Annotated[Real, Field(gt=0)]
Directive = Literal["noai", "noimageai", "noindex", "noimageindex"]


class Download(Section):
    """Limits of one worker. They decide whether an image is had, never what it is, so they are part of no
    identity.
    """

    concurrency: Annotated[Whole, Field(ge=1, le=1024)] = 32  # requests at a time
    per_host: Annotated[Whole, Field(ge=1, le=1024)] = 16  # of them, to one host
    connect_timeout: Seconds = 10.0
    read_timeout: Seconds = 20.0  # in which something must come
    total_timeout: Seconds = 60.0  # of one attempt, redirects and all
    retries: Annotated[Whole, Field(ge=0, le=20)] = 2  # after 408, 425, 429, 5xx, resets and timeouts
    backoff: Seconds = 1.0  # before the first retry; doubled for each further one
    max_backoff: Seconds = 60.0  # also where a server's Retry-After asks for more
    redirects: Annotated[Whole, Field(ge=0, le=50)] = 5
    max_bytes: Annotated[Whole, Field(ge=1, le=2**30)] = 128 * 2**20  # of one file
    user_agent: Text | None = None  # None: ControlMill and its version
    # directives of X-Robots-Tag that keep an image out; [] takes all
    robots: tuple[Directive, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    private_networks: bool = False  # whether hosts of this machine and of networks at home may be asked
