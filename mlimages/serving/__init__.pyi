from .access_log import JsonFormatter as JsonFormatter
from .app import make_app as make_app
from .app import serve as serve
from .settings import TOKEN_VARIABLE as TOKEN_VARIABLE
from .settings import ServerSettings as ServerSettings
from .settings import is_loopback as is_loopback
from .static_page import OrtWebFiles as OrtWebFiles
from .static_page import write_page as write_page
