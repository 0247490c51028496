"""Why an image cannot be had: one reason for programs, one sentence for people."""

from sandboxd.contract.images import ImageReason

__all__ = ["ImageReason", "ImageSourceError"]


class ImageSourceError(Exception):
    """An image cannot be had. `str()` says why and never holds a credential."""

    def __init__(self, reason: ImageReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def unavailable(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.REGISTRY_UNAVAILABLE, detail)


def unauthorized(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.UNAUTHORIZED, detail)


def not_found(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.NOT_FOUND, detail)


def wrong_platform(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.WRONG_PLATFORM, detail)


def corrupt(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.CORRUPT, detail)


def too_large(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.TOO_LARGE, detail)


def unsafe(detail: str) -> ImageSourceError:
    return ImageSourceError(ImageReason.UNSAFE_CONTENT, detail)
