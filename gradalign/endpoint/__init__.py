"""Models that are served elsewhere: their addresses, and one OpenAI-compatible endpoint asked over HTTP.

Knows token ids and what a server says; nothing of weights, trees or runs. The client is imported from `gradalign.endpoint.client` by those
who ask, so that addresses are understood without it.
"""

from gradalign.endpoint.address import PREFIX, Address, parse_address, require_no_secret

__all__ = ["PREFIX", "Address", "parse_address", "require_no_secret"]
