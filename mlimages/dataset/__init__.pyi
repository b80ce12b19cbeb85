from .augmentation import AugmentedPart as AugmentedPart
from .augmentation import AugmentSummary as AugmentSummary
from .augmentation import augment as augment
from .mean_files import load_mean_image as load_mean_image
from .mean_files import mean_image_differences as mean_image_differences
from .mean_image import MeanImage as MeanImage
from .mean_image import compute_mean as compute_mean
from .training_data import TrainingData as TrainingData
