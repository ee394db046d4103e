"""Models of other libraries by their names there: ``timm/resnet18``, ``torchvision/mobilenet_v3_small``, ``transformers/bert``.

Entry points of the group ``pruneloop.models`` like anybody's, so a library that is not installed is listed with that as its reason.
"""
