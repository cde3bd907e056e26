"""What a container gets to see of its share: mounts, variables, device nodes; and the libraries behind them.

A library lies at a path of its content's hash, and is never written again: programs have it mapped.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from deviceplugin.account import CARDS, TICKET
from deviceplugin.state import Ticket
from vcuda import libraries
from vcuda.calibration import Calibration
from vcuda.errors import VcudaError
from vcuda.grant import CardGrant, Grant
from vcuda.registry import MOUNTED
from vcuda.units import PPM

LIBRARY = PurePosixPath("/opt/vcuda/lib")
"""Where a container finds libvcuda.so."""
SIMULATOR = PurePosixPath("/opt/vcuda/sim")
SIMULATED = PurePosixPath("/opt/vcuda/machine")
"""The simulated machine's state, where there is one."""
DRIVER = PurePosixPath("/usr/local/nvidia/lib64")
"""Where CUDA images look for a driver that is mounted."""
PRELOAD = PurePosixPath("/etc/ld.so.preload")
NAME_BYTES = 63
_CONTROLS = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
_PPM_PER_PERCENT = PPM // 100


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A path of the host in a container."""

    host: str
    container: str
    read_only: bool = True


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the kubelet is told to give a container."""

    mounts: tuple[Mount, ...]
    variables: Mapping[str, str]
    devices: tuple[str, ...] = ()
    """Paths of device nodes, the same on both sides."""
    cdi: tuple[str, ...] = ()


@dataclass
class Delivery:
    """Answers for one node.

    run, host: the run directory, as seen from here and by the kubelet. sim_dir: of the simulated machine,
    here.
    """

    run: Path
    host: Path
    dev_dir: Path = Path("/dev")
    driver_dir: Path | None = None
    cdi_kind: str | None = None
    sim_dir: Path | None = None
    sim_models: str = ""
    _library: str = ""
    _simulator: str = ""
    _content: dict[str, list[tuple[Path | bytes, str]]] = field(
        default_factory=dict[str, list[tuple[Path | bytes, str]]]
    )

    def install(self) -> None:
        """Put the libraries of this version where containers get them from.

        Raises:
            VcudaError: they were not built, or cannot be copied.

        """
        preload = f"{LIBRARY}/libvcuda.so\n".encode()
        self._library = self._install("shim", [(libraries.shim(), "libvcuda.so"), (preload, "ld.so.preload")])
        if self.sim_dir is not None:
            files = sorted(libraries.simulator().iterdir())
            self._simulator = self._install("sim", [(path, path.name) for path in files])

    def answer(self, ticket: Ticket, minors: Mapping[str, int]) -> Answer:
        """What the container with this ticket is given. minors: of the device nodes, by UUID."""
        share = self.host / "shares" / ticket.name / "share"
        library = self.host / "lib" / self._library
        mounts = [
            Mount(host=str(share), container=str(MOUNTED)),
            # Over the directory: of all that is in it, this alone is written by the container.
            Mount(host=str(share / "ledger"), container=str(MOUNTED / "ledger"), read_only=False),
            Mount(host=str(library), container=str(LIBRARY)),
            Mount(host=str(library / "ld.so.preload"), container=str(PRELOAD)),
        ]
        cards = ",".join(ticket.cards)
        variables = {TICKET: ticket.name, CARDS: cards, "CUDA_VISIBLE_DEVICES": cards}
        if self.sim_dir is not None:
            simulator = self.host / "lib" / self._simulator
            machine = self.host / self.sim_dir.relative_to(self.run)
            mounts += [
                Mount(host=str(simulator), container=str(SIMULATOR)),
                Mount(host=str(machine), container=str(SIMULATED), read_only=False),
            ]
            variables |= {
                "LD_LIBRARY_PATH": str(SIMULATOR),
                "SIMGPU_DIR": str(SIMULATED),
                "SIMGPU_CARDS": self.sim_models,
            }
            return Answer(mounts=tuple(mounts), variables=variables)
        if self.driver_dir is not None:
            mounts.append(Mount(host=str(self.driver_dir), container=str(DRIVER)))
        if self.cdi_kind is not None:
            cdi = tuple(f"{self.cdi_kind}={uuid}" for uuid in ticket.cards)
            return Answer(mounts=tuple(mounts), variables=variables, cdi=cdi)
        nodes = [f"nvidia{minors[uuid]}" for uuid in ticket.cards if uuid in minors]
        devices = [f"/dev/{name}" for name in (*nodes, *_CONTROLS) if (self.dev_dir / name).exists()]
        return Answer(mounts=tuple(mounts), variables=variables, devices=tuple(devices))

    def restore(self, hosts: Iterable[str]) -> None:
        """See that what an old answer named is there: after a boot, with another version, it is not.

        Raises:
            VcudaError: it cannot be made.

        """
        for host in hosts:
            path = PurePosixPath(host)
            base = PurePosixPath(self.host / "lib")
            if base in path.parents:
                name = path.relative_to(base).parts[0]
                kind = name.partition("-")[0]
                if kind in self._content and not (self.run / "lib" / name).exists():
                    self._copy(name, self._content[kind])

    def _install(self, kind: str, files: list[tuple[Path | bytes, str]]) -> str:
        """The name of the directory with these files, made if it is not there."""
        self._content[kind] = files
        digest = hashlib.sha256()
        try:
            for source, name in files:
                digest.update(name.encode() + b"\0")
                digest.update(source if isinstance(source, bytes) else source.read_bytes())
        except OSError as error:
            raise VcudaError(f"{error.filename}: cannot be read: {error.strerror}") from error
        directory = f"{kind}-{digest.hexdigest()[:16]}"
        if not (self.run / "lib" / directory).exists():
            self._copy(directory, files)
        return directory

    def _copy(self, name: str, files: list[tuple[Path | bytes, str]]) -> None:
        place = self.run / "lib"
        try:
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".new-", dir=place))
            for source, file in files:
                if isinstance(source, bytes):
                    (draft / file).write_bytes(source)
                else:
                    shutil.copyfile(source, draft / file)
                (draft / file).chmod(0o755 if not file.endswith(".preload") else 0o644)
            draft.chmod(0o755)
            os.rename(draft, place / name)  # noqa: PTH104 (whole or not at all)
        except OSError as error:
            raise VcudaError(f"{place / name}: cannot be made: {error.strerror}") from error


def grant_of(ticket: Ticket, known: Mapping[str, Calibration]) -> Grant:
    """What a container may use. known: what contexts cost, by UUID of the card."""
    owner = ticket.owner or ticket.meant
    return Grant(
        name=_short(f"{owner.namespace}/{owner.pod}/{owner.container}"),
        cards=tuple(
            CardGrant(
                uuid=share.uuid,
                memory_bytes=share.memory_bytes,
                # Nothing is guaranteed to a share of 0: it has what others leave, and never less than this.
                core_ppm=max(1, share.cores * _PPM_PER_PERCENT),
                core_max_ppm=max(1, share.cores_max * _PPM_PER_PERCENT),
                priority=ticket.priority,
                whole=share.whole,
                context_bytes=known.get(share.uuid, Calibration()).context_bytes,
                page_bytes=known.get(share.uuid, Calibration()).page_bytes,
            )
            for share in ticket.shares
        ),
    )


def _short(name: str) -> str:
    """A name as a grant can hold it: what is cut is in the middle, since both ends say most."""
    if len(name) <= NAME_BYTES:
        return name
    half = (NAME_BYTES - 2) // 2
    return f"{name[:half]}..{name[-(NAME_BYTES - 2 - half) :]}"
