"""How to cite a leaderboard: the project and the paper that it implements, as CITATION.cff has them."""


def bibtex(version: str) -> str:
    """Of the version that wrote it; '' = not known."""
    told = f"  version = {{{version}}},\n" if version else ""
    return (
        f"""@software{{controlmill,
  title   = {{ControlMill}},
  author  = {{{{The ControlMill developers}}}},
{told}  year    = {{2026}},
  note    = {{Apache-2.0}}
}}

"""
        + PAPER
    )


PAPER = """@inproceedings{zhang2023adding,
  title         = {Adding Conditional Control to Text-to-Image Diffusion Models},
  author        = {Zhang, Lvmin and Rao, Anyi and Agrawala, Maneesh},
  booktitle     = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year          = {2023},
  eprint        = {2302.05543},
  archiveprefix = {arXiv}
}"""
