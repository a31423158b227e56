"""Frozen networks. The only room that knows timm (law L1)."""
