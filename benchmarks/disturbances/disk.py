"""A small disk of its own, in memory, that can be filled; needs to be root. And a view of mounts that nobody shares."""

import os
import subprocess
import sys
from pathlib import Path

_CHUNK_BYTES = 1 << 20
_PRIVATE = "TOKENMILL_CHAOS_PRIVATE_MOUNTS"


def with_private_mounts(shared_memory_mb: int) -> bool:
    """Start this command anew where its mounts, and a /dev/shm of its own, are seen by its processes alone and go with
    them; false where that cannot be.
    """
    if os.geteuid() != 0:
        return False
    if not os.environ.get(_PRIVATE):
        os.environ[_PRIVATE] = "1"
        unshare = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
        os.execvp(unshare[0], unshare)
    _mount(Path("/dev/shm"), shared_memory_mb)
    return True


def used_bytes(folder: Path) -> int:
    """Of the file system that `folder` stands on."""
    state = os.statvfs(folder)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def _mount(folder: Path, size_mb: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)], check=True)


class SmallDisk:
    """Mounted at `folder`, which is made."""

    def __init__(self, folder: Path, size_mb: int):
        folder.mkdir(parents=True)
        _mount(folder, size_mb)
        self.folder, self._ballast = folder, folder / "ballast"

    def fill(self, left_bytes: int) -> None:
        """Leave no more than that much free."""
        with self._ballast.open("ab") as ballast:
            state = os.statvfs(self.folder)
            more = state.f_bavail * state.f_frsize - left_bytes
            try:
                while more > 0:
                    more -= ballast.write(bytes(min(more, _CHUNK_BYTES)))
                ballast.flush()
            except OSError:  # others write, too
                return

    def free(self) -> None:
        """What was filled is free again."""
        self._ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Give it back, with all that stands on it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
