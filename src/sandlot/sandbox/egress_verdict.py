"""Words for what became of a request at the egress proxy, and the refusal that carries one."""

from __future__ import annotations

ALLOWED = "allowed"
NOT_ALLOWED = "not allowed"
DENIED = "denied"
NOT_A_NAME = "address instead of name"
LOCAL_NAME = "local name"
PORT_NOT_ALLOWED = "port not allowed"
DOES_NOT_RESOLVE = "does not resolve"
PRIVATE_ADDRESS = "private address"
FORBIDDEN_ADDRESS = "forbidden address"
UNREACHABLE = "unreachable"
BAD_ANSWER = "no valid answer"
MALFORMED = "malformed request"
UNFINISHED = "unfinished"
NOT_TLS = "not TLS"
WRONG_TLS_NAME = "TLS name does not match"
NO_HANDSHAKE = "TLS handshake failed"
NO_TOKEN = "no valid token"
BYTES_SPENT = "byte budget spent"
CONNECTIONS_SPENT = "connection budget spent"


class Refusal(Exception):
    """A request that ends here; `advice` is the text that the model reads.

    `asked` is what stood in the place of a name, where that was no name.
    """

    def __init__(self, status: int, verdict: str, advice: str, asked: str = "") -> None:
        super().__init__(advice)
        self.asked = asked
        self.status = status
        self.verdict = verdict
        self.advice = advice


def malformed(what: str) -> Refusal:
    return Refusal(400, MALFORMED, f"bad request: {what}.")
