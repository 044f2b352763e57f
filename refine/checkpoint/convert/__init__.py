"""Import detectron2, torchvision and Caffe2 weights."""
