from .op import channelwise_conv

__all__ = ["channelwise_conv"]
