"""The stages that a frame walks: ingress, IP input, routing decision, local input, forwarding,
output.
"""
