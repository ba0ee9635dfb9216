"""What a user of saved modules sees: three methods, and one function that finds the class by itself."""

import os
from typing import Self, cast

from torch import nn

from straightvq.errors import InvalidTypeError
from straightvq.hub.folder import load, save
from straightvq.hub.transfer import find_folder, push


class Pretrained:
    """Gives a module the ways to be saved and loaded as a folder, which the Hugging Face Hub can hold.

    The folder has ``config.json`` with class and arguments, ``model.safetensors`` with all parameters and buffers, and
    ``README.md``, the model card. No file is a pickle, and a config can name public modules of this package only.
    """

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the folder; see the class.

        Saved are class, arguments as they are now, and the state: codes, statistics, seeds, frozen or not. Not saved
        are hooks, process groups, ``reduction``, ``check_finite``, the mode, and whatever belongs to an optimizer.

        Args:
            folder: made if it is missing; files of the same names are replaced.

        Raises:
            TypeError, ValueError: for parts of classes of your own, and for a module that was changed by hand so that
                its arguments do not make it; nothing is written then.
            ImportError: without the package safetensors.
            OSError: if the disk refuses.

        Example:
            >>> import straightvq as svq
            >>> layer = svq.presets.straight(dim=8, codebook_size=16)
            >>> layer.save_pretrained("layer")
            >>> sorted(os.listdir("layer"))
            ['README.md', 'config.json', 'model.safetensors']
            >>> again = svq.from_pretrained("layer")
            >>> bool((again.codes() == layer.codes()).all())
            True
        """
        save(cast(nn.Module, self), folder)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """As `straightvq.from_pretrained`; what is loaded must be of this class."""
        found = from_pretrained(name, revision=revision, token=token, cache_dir=cache_dir)
        if not isinstance(found, cls):
            raise InvalidTypeError(
                f"`from_pretrained`: {str(name)!r} must hold a {cls.__name__}. Got a {type(found).__name__}; "
                "straightvq.from_pretrained takes any."
            )
        return found

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Uploads what ``save_pretrained`` writes to the Hugging Face Hub, and returns the address.

        Args:
            name: ``owner/name``; made if the Hub has none of that name.
            private: whether a new one is; None for the owner's default.
            revision: branch; None for the main one.
            token: of the user; None for that of ``hf auth login``.

        Raises:
            TypeError, ValueError: as ``save_pretrained`` does; for a name that is none; with the Hub's answer if it
                refuses or cannot be reached.
            ImportError: without the packages safetensors and huggingface_hub.
        """
        return push(cast(nn.Module, self), name, private=private, revision=revision, token=token)


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Loads what ``save_pretrained`` wrote: a quantizer, a network or a task, whichever it is.

    It gives the same outputs, indices, gradients and next training step as what was saved, to the bit. It is on the
    CPU and in evaluation mode; call ``.train()`` to go on. No code of the files is run, and torch's random state stays
    as it is.

    Args:
        name: the folder, or ``owner/name`` on the Hugging Face Hub; a folder of that name comes first.
        revision: on the Hub: branch, tag or commit; None for the newest.
        token: on the Hub: of the user; None for that of ``hf auth login``.
        cache_dir: where downloads are kept; None for the Hub's own cache.

    Raises:
        TypeError, ValueError: for what is neither folder nor name, what the Hub does not have, a Hub that cannot be
            reached, and files that are damaged, of another kind, or do not belong together.
        ImportError: without the packages safetensors and, for the Hub, huggingface_hub.

    Example:
        >>> import straightvq as svq
        >>> svq.presets.fsq(6, [4, 4]).save_pretrained("rounding")
        >>> from_pretrained("rounding").codebook_size
        16
    """
    return load(find_folder(name, revision, token, cache_dir))
