"""`python -m shoal.deploy.certs`: makes an authority and issues certificates from it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shoal.deploy.certs.ca import PROFILES, Authority, CertificateError


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done (or nothing to do), 1 refused."""
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "init":
            authority = Authority.ensure(options.folder, options.name)
            print(f"certificate authority: {authority.certificate}")
            return 0
        issued = Authority.open(options.folder).issue(options.profile, options.name, options.address, options.force)
    except CertificateError as error:
        print(f"shoal-certs: {error}", file=sys.stderr)
        return 1
    print(f"{'wrote' if issued.fresh else 'kept'} {issued.certificate} and {issued.key}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shoal.deploy.certs", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    init = verbs.add_parser("init", help="make a certificate authority, unless it is there")
    init.add_argument("folder", type=Path)
    init.add_argument("--name", default="shoal", help="what the authority calls itself")
    issue = verbs.add_parser("issue", help="write NAME.crt and NAME.key, unless good ones are there")
    issue.add_argument("folder", type=Path)
    issue.add_argument("profile", choices=sorted(PROFILES))
    issue.add_argument("name", help="the common name: of a node its name")
    issue.add_argument("--address", action="append", default=[], help="IP or DNS name of a server; may be repeated")
    issue.add_argument("--force", action="store_true", help="replace what is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
