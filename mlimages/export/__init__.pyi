from .exporter import ExportOptions as ExportOptions
from .exporter import export_trained as export_trained
from .onnx_writer import TrainedNetwork as TrainedNetwork
from .quantization import Quantization as Quantization
from .quantization import quantize as quantize
