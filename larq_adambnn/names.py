"""Names that the library's arguments and the command line's flags have in common."""

__all__ = ["BAD_IMAGES", "CROPS", "IO_TYPES", "NETWORKS", "ZOO"]

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

# Training crops: random_resized is ImageNet's, padded shifts by up to 1/8
CROPS = ("random_resized", "padded", "none")

# What an unusable image does
BAD_IMAGES = ("error", "skip")

# Input and output of a .tflite
IO_TYPES = ("float", "int8")
