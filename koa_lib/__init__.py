"""koa_lib: the library behind the koa-clip study."""

import warnings

# tqdm complains about a missing browser widget in every notebook; the study prints plain lines instead.
warnings.filterwarnings("ignore", message="IProgress not found")
