"""Features at a grid of geometries, what they are good for, and the tables and figures drawn from that."""

from flexvideo.evaluate.bootstrap import Estimate as Estimate
from flexvideo.evaluate.bootstrap import estimate as estimate
from flexvideo.evaluate.extraction import Features as Features
from flexvideo.evaluate.extraction import extract as extract
from flexvideo.evaluate.grid import Cell as Cell
from flexvideo.evaluate.grid import Cost as Cost
from flexvideo.evaluate.grid import cells as cells
from flexvideo.evaluate.grid import costs_of as costs_of
from flexvideo.evaluate.metrics import balanced_accuracy as balanced_accuracy
from flexvideo.evaluate.metrics import knn_scores as knn_scores
from flexvideo.evaluate.metrics import retrieval_values as retrieval_values
from flexvideo.evaluate.metrics import topk_hits as topk_hits
from flexvideo.evaluate.native import NativeSize as NativeSize
from flexvideo.evaluate.probe import Probe as Probe
from flexvideo.evaluate.probe import fit_probe as fit_probe
from flexvideo.evaluate.results import CellResult as CellResult
from flexvideo.evaluate.results import Result as Result
from flexvideo.evaluate.results import load_result as load_result
from flexvideo.evaluate.results import save_result as save_result
from flexvideo.evaluate.tasks import accuracy as accuracy
from flexvideo.evaluate.tasks import knn as knn
from flexvideo.evaluate.tasks import linear_probe as linear_probe
from flexvideo.evaluate.tasks import require_classes as require_classes
from flexvideo.evaluate.tasks import retrieval as retrieval
from flexvideo.evaluate.views import Views as Views
