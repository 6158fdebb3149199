"""Currencies (pure): the exponents of ISO 4217, and the rule for codes of the caller's own.

Codes for which ISO 4217 gives no minor unit (metals, XTS, XXX and their like) count as the caller's
own. Codes withdrawn since 2015 are kept: the books of those years are still loaded.
"""

import re
from typing import Final

from cell.errors import Unprocessable

EXPONENT_MAX: Final = 30
CODE_LENGTH_MAX: Final = 32

_CODES: Final[dict[int, str]] = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: """
        AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN
        BZD CAD CDF CHE CHF CHW CNY COP COU CRC CUC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP
        GBP GEL GHS GIP GMD GTQ GYD HKD HNL HRK HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT
        LAK LBP LKR LRD LSL LTL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN
        NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SLL
        SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST
        XCD XCG YER ZAR ZMW ZWG ZWL
    """,
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}

EXPONENTS: Final[dict[str, int]] = {
    code: exponent for exponent, codes in _CODES.items() for code in codes.split()
}
"""Digits after the decimal point of each ISO 4217 code."""

_CODE: Final = re.compile(r"[!-~]{1,32}", re.ASCII)


def resolve_exponent(currency: str, given: int | None) -> int:
    """The exponent of a currency; raises Unprocessable where code and exponent do not fit.

    In order: a code is 1 to 32 printable ASCII characters without spaces; an ISO code has its own
    exponent and may be given that one only; any other code needs an exponent of 0 to 30.
    """
    if _CODE.fullmatch(currency) is None:
        raise Unprocessable(
            f"currency: a code has 1 to {CODE_LENGTH_MAX} printable ASCII characters", "currency"
        )
    known = EXPONENTS.get(currency)
    if known is not None:
        if given not in (None, known):
            raise Unprocessable(
                f"currency_exponent: {currency} has exponent {known}, not {given}",
                "currency_exponent",
            )
        return known
    if given is None:
        raise Unprocessable(
            f"currency_exponent: {currency} is no ISO 4217 code and needs an exponent",
            "currency_exponent",
            code="parameter_missing",
        )
    if not 0 <= given <= EXPONENT_MAX:
        raise Unprocessable(
            f"currency_exponent: {given} is not between 0 and {EXPONENT_MAX}", "currency_exponent"
        )
    return given
