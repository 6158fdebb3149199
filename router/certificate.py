"""The certificate that clients see, from two files, read anew whenever they change.

Connections made before a change live on with the old one. Files that cannot be used, as while one
of the two is replaced already and the other is not, change nothing: they are tried again.
"""

import logging
import ssl
from pathlib import Path
from typing import Final

from router.errors import SettingsError

log = logging.getLogger(__name__)

CHECK_S: Final = 2.0
"""How often the files are looked at."""

Stamp = tuple[tuple[int, int, int], ...]
"""Of each file: when it was changed, its size and its inode; differs after any replacement."""


class Certificate:
    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises SettingsError if the files cannot be used."""
        self._files = (certificate, key)
        self._checked_s = 0.0
        self._complained_of: Stamp | None = None
        try:
            self._stamp = self._stamp_now()
            self._current = self._read()
        except (OSError, ssl.SSLError) as exc:
            raise SettingsError(f"{certificate} and {key} are no certificate: {exc}") from exc
        self.context = self._read()
        """For the server. It hands each connection to the context read last; a context in use could
        not be changed safely, as certificate and key are loaded one after the other."""
        self.context.sni_callback = self._choose

    def sweep(self, now_s: float) -> None:
        if now_s - self._checked_s < CHECK_S:
            return
        self._checked_s = now_s
        stamp: Stamp | None = None
        try:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._current = self._read()
                self._stamp = stamp
                log.info("certificate read anew", extra={"file": str(self._files[0])})
        except (OSError, ssl.SSLError) as exc:
            # Once for each change, not every two seconds.
            if stamp is None or stamp != self._complained_of:
                log.error("certificate unusable, the one before stays", extra={"reason": str(exc)})
            self._complained_of = stamp

    def _stamp_now(self) -> Stamp:
        states = [file.stat() for file in self._files]
        return tuple((state.st_mtime_ns, state.st_size, state.st_ino) for state in states)

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(*self._files)
        return context

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext
    ) -> None:
        connection.context = self._current
