# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask a Debian mirror whether it has a file; its package lists name files that are gone."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http import HTTPStatus

from harness.debian.apt import Apt, Package, SourcePackage

AnyPackage = Package | SourcePackage

_SECONDS = 10.0
_GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


def files_on_mirror(apt: Apt, packages: Sequence[AnyPackage]) -> Callable[[AnyPackage], bool]:
    """A predicate: whether the mirror has one of these packages, when it is called.

    A package counts as there when the mirror gives no clear answer.
    """
    addresses = apt.addresses(packages)

    def is_there(package: AnyPackage) -> bool:
        address = addresses.get(package.sha256)
        return address is None or _is_there(address)

    return is_there


def _is_there(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code not in _GONE
    except urllib.error.URLError as error:
        return not isinstance(error.reason, FileNotFoundError)
    except (OSError, ValueError):
        return True
