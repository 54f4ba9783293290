"""`python -m tests.commit_message FILE`: check the form of a commit message; pre-commit's commit-msg hook."""

import re
import sys
from pathlib import Path

LONGEST_SUBJECT = 72
_NOT_IMPERATIVE = re.compile(r"\w+(ed|ing|[^s]s)")
_IMPERATIVE = {
    "bring",
    "embed",
    "exceed",
    "feed",
    "focus",
    "need",
    "proceed",
    "seed",
    "shed",
    "speed",
    "succeed",
}


def problem(message: str) -> str:
    """Return what is wrong with a commit message, "" if nothing is."""
    lines = [line for line in message.splitlines() if not line.startswith("#")]
    subject, *rest = lines or [""]
    first = subject.partition(" ")[0].lower()
    if subject.startswith(("Merge ", "Revert ", "fixup! ", "squash! ")):
        return ""
    if not subject.strip():
        return "the subject is empty"
    if len(subject) > LONGEST_SUBJECT:
        return f"the subject has {len(subject)} characters; use at most {LONGEST_SUBJECT}"
    if not subject[0].isupper() or subject.endswith("."):
        return "start the subject with a capital and end it without a full stop"
    if first.endswith(":"):
        return "start the subject with a verb, not with a prefix"
    if first not in _IMPERATIVE and _NOT_IMPERATIVE.fullmatch(first):
        return f"{subject.split()[0]!r} is not imperative; write 'Add', not 'Added', 'Adds' or 'Adding'"
    if rest and rest[0].strip():
        return "separate the body from the subject by an empty line"
    if not any(line.strip() for line in rest):
        return "say why in the body"
    return ""


if __name__ == "__main__":
    if error := problem(Path(sys.argv[1]).read_text()):
        sys.exit(f"commit message: {error}")
