# SPDX-License-Identifier: Apache-2.0
"""C3D, the 3-D convolutional video network of Tran et al. (ICCV 2015), on TensorFlow and Keras."""

__version__ = '0.1.0'
