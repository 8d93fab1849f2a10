"""Header views, one file a protocol: named offsets, one check per header, and builders for what we
originate.

``parse(pkt)`` checks a header once, copies what later stages need into the Packet and returns 0, or
the DropReason. After it, offsets and lengths are trusted. Nothing here raises for bytes from the
wire.
"""
