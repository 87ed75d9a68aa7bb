"""The router's own secret key, and what is derived from it.

One random key in `DIR/secret_key` (mode 0600). Webhook secrets are encrypted with it (Fernet),
and artifact URLs are signed with another key that is derived from it, so that neither use can
tell anything about the other.
"""

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy import select

from batchrouter.errors import ConfigError
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import facts

__all__ = ["Vault"]

_KEY_BYTES = 32


class Vault:
    """Encrypts what must be read again, and derives keys for what must be signed.

    Example:
        >>> vault = Vault(b"k" * 32)
        >>> vault.decrypt(vault.encrypt("whsec_demo"))
        'whsec_demo'
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._fernet = Fernet(base64.urlsafe_b64encode(self.derive("webhook-secrets")))

    def agree(self, database: Database) -> None:
        """See that all processes on a shared database have this key; the first one's counts.

        Raises:
            ConfigError: Another one is in use.
        """
        with database.writing() as conn:
            wanted = select(facts.c.value).where(facts.c.name == "secret_key")
            known = conn.execute(wanted).scalar_one_or_none()
            if known is None:
                conn.execute(facts.insert().values(name="secret_key", value=self.fingerprint))
                return
        if known != self.fingerprint:
            raise ConfigError(
                "secret_key is not the one of the other processes on this database: copy that of"
                " the first one's data folder, or name one by BATCHROUTER_SECRET_KEY_FILE"
            )

    @classmethod
    def open(cls, path: Path) -> "Vault":
        """Read the key file, or create it with a fresh key.

        Raises:
            ConfigError: The file does not hold a key.
        """
        if not path.exists():
            _create(path)
        try:
            key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise ConfigError(
                f"{path.name} in the data folder does not hold {_KEY_BYTES} bytes in hex:"
                " restore it from a backup; without it no stored webhook secret can be read"
            )
        return cls(key)

    @property
    def fingerprint(self) -> str:
        """Names the key without telling anything of it."""
        return self.derive("fingerprint").hex()[:32]

    def derive(self, purpose: str) -> bytes:
        """Derive 32 bytes for one purpose."""
        return hmac.new(self._key, f"batchrouter:{purpose}".encode(), hashlib.sha256).digest()

    def encrypt(self, secret: str) -> bytes:
        """Encrypt a secret for a table."""
        return self._fernet.encrypt(secret.encode())

    def decrypt(self, token: bytes) -> str:
        """Read a secret back.

        Raises:
            ConfigError: It was encrypted with another key.
        """
        try:
            return self._fernet.decrypt(token).decode()
        except InvalidToken:
            raise ConfigError("a stored webhook secret belongs to another secret_key") from None


def _create(path: Path) -> None:
    """Write a fresh key whole, or not at all: a router that dies here must start again."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link fails where a second process was quicker; a rename would take its key away.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
