"""Generates the modules beside proto/v1/*.proto; `make proto` runs it and a test checks that its output is fresh."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def generate(out: Path) -> None:
    """Writes every generated module below `out` (as out/shoal/proto/v1/...). Raises SystemExit when protoc refuses."""
    from grpc_tools import protoc

    protos = sorted(str(p) for p in (ROOT / "src/shoal/proto/v1").glob("*.proto"))
    bin_dir = Path(sys.executable).parent
    args = [
        "protoc",
        f"-I{ROOT / 'src'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *protos,
    ]
    if protoc.main(args) != 0:
        raise SystemExit("protoc refused the .proto files; its message is above")
    for proto in (out / "shoal/proto/v1").parent.glob("v1/*_pb2.py"):
        if not any(line.startswith("service ") for line in source_of(proto).read_text().splitlines()):
            for suffix in ("py", "pyi"):  # files without a service get empty stubs
                (proto.parent / f"{proto.stem}_grpc.{suffix}").unlink(missing_ok=True)


def source_of(generated: Path) -> Path:
    """The .proto file that a generated module came from."""
    return ROOT / "src/shoal/proto/v1" / f"{generated.stem.removesuffix('_pb2')}.proto"


if __name__ == "__main__":
    generate(ROOT / "src")
