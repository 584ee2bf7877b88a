"""Which hosts an address of the web may name: none of a private network, however it is spelled."""

import ipaddress
import socket
from functools import lru_cache

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in the last 32 bits
COMPATIBLE = ipaddress.ip_network("::/96")  # the same, of old


def is_public(address: IpAddress) -> bool:
    """Whether it is of the open internet, and so is every IPv4 address that is written within."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in NAT64 or address in COMPATIBLE:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        within = [one for one in inner if one is not None]
        if within:
            return all(map(is_public, within))
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


@lru_cache(maxsize=4096)
def literal(host: str) -> IpAddress | None:
    """The address that a host is, also spelled as 2130706433, 0x7f.1 or 0177.0.0.1; None = it is a name."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if host and host[0].isdigit() else None
    except (OSError, UnicodeError):
        return None
