"""Names that the library's arguments and the command line's flags have in common."""

import re

__all__ = [
    "APPLICATIONS",
    "BAD_IMAGES",
    "CROPS",
    "FAMILIES",
    "IO_TYPES",
    "NETWORKS",
    "ZOO",
    "is_own",
]

# larq-zoo's networks with binary weights
ZOO = (
    "BiRealNet",
    "BinaryAlexNet",
    "BinaryDenseNet28",
    "BinaryDenseNet37",
    "BinaryDenseNet37Dilated",
    "BinaryDenseNet45",
    "BinaryResNetE18",
    "DoReFaNet",
    "MeliusNet22",
    "QuickNet",
    "QuickNetLarge",
    "QuickNetSmall",
    "RealToBinaryNet",
    "XNORNet",
)
NETWORKS = ("reactnet_a", "reactnet18", "resnet34", *ZOO)


def is_own(network: str) -> bool:
    """Whether a network is named by a function of the user's: package.module:function."""
    return isinstance(network, str) and bool(
        re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", network)
    )


# The networks of tf.keras.applications: families and their sizes
_REGNETS = ("002", "004", "006", "008", "016", "032", "040", "064", "080", "120", "160", "320")
FAMILIES = {
    "ConvNeXt": ("Tiny", "Small", "Base", "Large", "XLarge"),
    "DenseNet": ("121", "169", "201"),
    "EfficientNet": ("B0", "B1", "B2", "B3", "B4", "B5", "B6", "B7"),
    "EfficientNetV2": ("B0", "B1", "B2", "B3", "S", "M", "L"),
    "Inception": ("V3", "ResNetV2"),
    "MobileNet": ("", "V2", "V3Small", "V3Large"),
    "NASNet": ("Mobile", "Large"),
    "RegNetX": _REGNETS,
    "RegNetY": _REGNETS,
    "ResNet": ("50", "101", "152", "50V2", "101V2", "152V2"),
    "ResNetRS": ("50", "101", "152", "200", "270", "350", "420"),
    "VGG": ("16", "19"),
    "Xception": ("",),
}
APPLICATIONS = tuple(f"{family}{size}" for family, sizes in FAMILIES.items() for size in sizes)

# Training crops: random_resized is ImageNet's, padded shifts by up to 1/8
CROPS = ("random_resized", "padded", "none")

# What an unusable image does
BAD_IMAGES = ("error", "skip")

# Input and output of a .tflite
IO_TYPES = ("float", "int8")
