"""IPVS: services, dests, schedulers, conns and what they do to a packet."""
