"""Networks that answer a view with named taps: timm, segmentation_models_pytorch, torchvision, own modules."""
