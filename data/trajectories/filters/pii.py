"""Rules that find personal data and replace it.

A replacement has the same shape, passes the same checksum, and lies in a range that is not assigned to anybody. So it
cannot identify a person, and it is recognized as a replacement: scrubbing a scrubbed text changes nothing.

| kind | range | source |
|---|---|---|
| email | ends in `.invalid` | RFC 6761 |
| IBAN | country XX | ISO 3166-1, user-assigned |
| credit card | begins with 9999 | ISO/IEC 7812: country 999 is not assigned |
| US SSN | 9xx-0x to 9xx-4x | Social Security Administration: area 9xx is not issued, ITINs begin at group 50 |
| phone | +999...; in North America xxx-555-01xx | ITU-T E.164: unassigned; NANPA: for fiction |
| IP | 240.0.0.0/4 (not 255); 2001:db8::/32 | RFC 1112; RFC 3849 |
"""

import dataclasses
import ipaddress
import re
from collections.abc import Collection, Iterator
from typing import Protocol

from data.trajectories.filters.draw import Seeds

MANY_ATTEMPTS = 20
# A value begins after a character that is not part of a word, or after a written-out escape (`\n`).
_START = r"(?:(?<=\\[nrt])|(?<!\w))"


@dataclasses.dataclass(frozen=True)
class Match:
    """Personal data, or a replacement, found in a text at [start, end)."""

    start: int
    end: int
    kind: str
    value: str
    """The normalized value: without separators, in lower case."""
    real: bool
    """False if it is already a replacement."""


class Rule(Protocol):
    """Finds and replaces one kind of personal data."""

    kind: str

    def find(self, text: str) -> Iterator[Match]:
        """Finds values and replacements in `text`; they may overlap the matches of other rules."""
        ...

    def surrogate(self, value: str, seeds: Seeds) -> str:
        """A replacement for the normalized `value`, in normalized form, from the pseudorandom numbers of `seeds`."""
        ...

    def write(self, surrogate: str, original: str) -> str:
        """The replacement in the written form of `original`."""
        ...


def reshaped(characters: str, original: str) -> str:
    """`original` with its letters and digits replaced by `characters` in order; its case and separators stay."""
    others = iter(characters)
    return "".join(_cased(next(others), old) if old.isalnum() else old for old in original)


def _cased(new: str, old: str) -> str:
    return new.upper() if old.isupper() else new.lower()


def _compact(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


class Email:
    """E-mail addresses, case-insensitive. Equal domains get equal replacements."""

    kind = "email"
    _PATTERN = re.compile(
        r"(?:(?<=\\[nrt])|(?<![\w.%+\\-]))[\w%+-][\w.%+'-]{0,63}@(?:\w(?:[\w-]{0,62})\.){1,8}[^\W\d_]{2,24}(?!\w)"
    )

    def find(self, text: str) -> Iterator[Match]:
        for found in self._PATTERN.finditer(text) if "@" in text else ():
            value = found[0].lower()
            yield Match(found.start(), found.end(), self.kind, value, not value.endswith(".invalid"))

    def surrogate(self, value: str, seeds: Seeds) -> str:
        local, _, domain = value.partition("@")
        own = seeds.own()
        longer = "aaaa" if seeds.attempt > MANY_ATTEMPTS else ""  # all replacements of a short name may be taken
        return f"{own.like(local + longer)}@{seeds.shared(domain).like(domain.rpartition('.')[0])}.invalid"

    def write(self, surrogate: str, original: str) -> str:
        if len(surrogate.partition("@")[0]) != len(original.partition("@")[0]):
            return surrogate
        kept = len(original.rpartition(".")[0])
        return "".join(map(_cased, surrogate[:kept], original)) + surrogate[kept:]


class Iban:
    """IBANs of a known country, with its length and the check digits of ISO 13616 (mod 97)."""

    kind = "iban"
    _BEGIN = re.compile(rf"{_START}[A-Za-z]{{2}}\d\d(?=[ -]?[A-Za-z0-9])")
    LENGTHS = {
        "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
        "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
        "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
        "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
        "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
        "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
        "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24,
        "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
        "YE": 30,
    }  # fmt: skip
    """Country -> number of characters (registry of ISO 13616)."""
    _ALL = frozenset(LENGTHS.values())
    NOBODYS = "xx"

    def find(self, text: str) -> Iterator[Match]:
        for begin in self._BEGIN.finditer(text):
            country = begin[0][:2].upper()
            real = country in self.LENGTHS
            if not real and country != self.NOBODYS.upper():
                continue
            lengths = {self.LENGTHS[country]} if real else self._ALL
            if end := _end(text, begin.start(), lengths):
                yield Match(begin.start(), end, self.kind, _compact(text[begin.start() : end]).lower(), real)

    def surrogate(self, value: str, seeds: Seeds) -> str:
        account = seeds.own().like(value[4:])
        return f"{self.NOBODYS}{98 - mod97(f'{self.NOBODYS}00{account}'):02}{account}"

    def write(self, surrogate: str, original: str) -> str:
        return reshaped(surrogate, original)


def mod97(iban: str) -> int:
    """The remainder of ISO 7064, which is 1 for a valid IBAN."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97


def _end(text: str, start: int, lengths: Collection[int]) -> int | None:
    """End of the longest IBAN with one of `lengths` that begins at `start`, ignoring single blanks or dashes; the word
    must end there too. One pass, in which the remainder is updated with every character."""
    head = int("".join(str(int(c, 36)) for c in text[start : start + 4]))
    i, remainder, found = start + 4, 0, None
    for length in range(5, max(lengths) + 1):
        i += i < len(text) and text[i] in " -"
        if i >= len(text) or not (text[i].isascii() and text[i].isalnum()):
            break
        digit = int(text[i], 36)
        remainder = (remainder * (10 if digit < 10 else 100) + digit) % 97
        i += 1
        ends = i >= len(text) or not (text[i].isalnum() or text[i] == "_")
        if length in lengths and ends and (remainder * 10**6 + head) % 97 == 1:
            found = i
    return found


class CreditCard:
    """Card numbers: 13 to 19 digits in a network's range with a Luhn check digit, without or with the usual groups."""

    kind = "credit_card"
    _PATTERN = re.compile(
        rf"{_START}(?<![0-9]\.)(?=((?:[0-9]{{13,19}}|[0-9]{{4}}([ -])[0-9]{{4}}\2[0-9]{{4}}\2[0-9]{{1,4}}"
        r"|[0-9]{4}([ -])[0-9]{6}\3[0-9]{4,5}))(?!\w))"
    )
    # Visa; Mastercard; American Express; Diners; Discover; JCB; UnionPay; Maestro
    _NETWORKS = re.compile(r"4|5[0-9]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|3(?:0[0-5]|[689])|35(?:2[89]|[3-8])|6")
    NOBODYS = "9999"

    def find(self, text: str) -> Iterator[Match]:
        for found in self._PATTERN.finditer(text):
            value = _compact(found[1])
            real = self._NETWORKS.match(value) is not None
            if (real or value.startswith(self.NOBODYS)) and luhn(value):
                yield Match(found.start(1), found.end(1), self.kind, value, real)

    def surrogate(self, value: str, seeds: Seeds) -> str:
        digits = self.NOBODYS + seeds.own().digits(len(value) - 5)
        return next(found for check in range(10) if luhn(found := f"{digits}{check}"))

    def write(self, surrogate: str, original: str) -> str:
        return reshaped(surrogate, original)


def luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (divmod(2 * int(d), 10) for d in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(map(sum, doubled))) % 10 == 0


class SocialSecurity:
    """US social security numbers: three, two and four digits with dashes, in a range that is issued."""

    kind = "us_ssn"
    _PATTERN = re.compile(rf"{_START}(?<!\w-)[0-9]{{3}}-[0-9]{{2}}-[0-9]{{4}}(?!-?\w)")
    _ISSUED = re.compile(r"(?!000|666|9)...(?!00)..(?!0000)....")
    _NOBODYS = re.compile(r"9..[0-4]")

    def find(self, text: str) -> Iterator[Match]:
        for found in self._PATTERN.finditer(text):
            value = _compact(found[0])
            real = self._ISSUED.match(value) is not None
            if real or self._NOBODYS.match(value):
                yield Match(found.start(), found.end(), self.kind, value, real)

    def surrogate(self, value: str, seeds: Seeds) -> str:
        own = seeds.own()
        return f"9{own.digits(2)}{own.below(5)}{own.digits(5)}"

    def write(self, surrogate: str, original: str) -> str:
        return reshaped(surrogate, original)


class Phone:
    """Phone numbers of North America with dashes, dots or brackets, and of any country with `+`. The value includes the
    country, so `+1 212 ...` and `212-...` are the same."""

    kind = "phone"
    _PATTERN = re.compile(
        r"(?:(?<=\\[nrt])|(?<![\w+]))(?<!\d[.-])(?:"
        r"(?:\+?1[ .-]?)?(?:\([2-9][0-9]{2}\)[ .-]?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[ .-][0-9]{4}"
        r"|\+1[ .-]?[2-9][0-9]{2}[ .-]?[2-9][0-9]{2}[ .-]?[0-9]{4}"
        r"|\+(?!1)[1-9](?:[ .-]?\(?[0-9]\)?){6,14})(?!\w|-\d)"
    )
    _NOBODYS = re.compile(r"999|1...55501..$")

    def find(self, text: str) -> Iterator[Match]:
        for found in self._PATTERN.finditer(text):
            digits = _compact(found[0])
            value = digits if digits.startswith("1") or "+" in found[0] else f"1{digits}"
            yield Match(found.start(), found.end(), self.kind, value, self._NOBODYS.match(value) is None)

    def surrogate(self, value: str, seeds: Seeds) -> str:
        own = seeds.own()
        if value.startswith("1"):
            return f"1{2 + own.below(8)}{own.digits(2)}55501{own.digits(2)}"
        return f"999{own.digits(len(value) - 3)}"

    def write(self, surrogate: str, original: str) -> str:
        return reshaped(surrogate[-len(_compact(original)) :], original)


class InternetAddress:
    """Public IP addresses; private, local and documentation addresses stay. A version number with four parts looks like
    an address too."""

    kind = "ip"
    _PATTERN = re.compile(
        r"(?:(?<=\\[nrt])|(?<![\w.]))(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.\w)"
        r"|(?:(?<=\\[nrt])|(?<![\w:]))[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{1,37}::(?![\w:])"
        r"|(?:(?<=\\[nrt])|(?<![\w:]))[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{1,38}(?<!:)(?!:?\w)"
    )
    _REACHED, _DOCUMENTATION = ipaddress.ip_network("2000::/3"), ipaddress.ip_network("2001:db8::/32")
    _NOBODYS = ipaddress.ip_network("240.0.0.0/4")

    def find(self, text: str) -> Iterator[Match]:
        for found in self._PATTERN.finditer(text):
            try:
                address = ipaddress.ip_address(found[0])
            except ValueError:
                continue
            real = address.is_global and not address.is_multicast and (address.version == 4 or address in self._REACHED)
            if real or address in (self._NOBODYS if address.version == 4 else self._DOCUMENTATION):
                yield Match(found.start(), found.end(), self.kind, str(address), real)

    def surrogate(self, value: str, seeds: Seeds) -> str:
        if ipaddress.ip_address(value).version == 4:
            return str(ipaddress.IPv4Address((240 << 24) + seeds.own().below(15 << 24)))
        return str(ipaddress.IPv6Address((0x20010DB8 << 96) + seeds.own().below(1 << 96)))

    def write(self, surrogate: str, original: str) -> str:
        return surrogate.upper() if original.isupper() else surrogate


RULES: dict[str, Rule] = {
    rule.kind: rule for rule in (Email(), Iban(), CreditCard(), SocialSecurity(), Phone(), InternetAddress())
}
"""Kind -> rule. If two rules match the same text, the earlier rule counts."""
