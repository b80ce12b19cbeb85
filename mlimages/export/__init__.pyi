from .exporter import ExportOptions as ExportOptions
from .exporter import export_network as export_network
from .onnx_writer import TrainedNetwork as TrainedNetwork
from .quantization import Quantization as Quantization
from .quantization import Trial as Trial
from .quantization import quantize as quantize
from .targets import RUNTIMES as RUNTIMES
