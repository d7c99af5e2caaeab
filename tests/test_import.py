"""`import flexvideo` loads what it needs and no more: not the compiler, and no extra."""

import json
import re
import subprocess
import sys
from types import ModuleType

import flexvideo

HEAVY = ("av", "matplotlib", "onnx", "triton", "timm", "transformers", "torchvision", "torch._dynamo")
SCRIPT = f"""
import json, sys, torch, torch.utils.flop_counter  # from torch 2.11 on it imports triton by itself
before = set(sys.modules)
import flexvideo, flexvideo.data
print(json.dumps([name for name in {HEAVY} if name in set(sys.modules) - before]))
"""


def test_import_is_light() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True)
    assert json.loads(done.stdout) == []


def test_help_lists_what_there_is() -> None:
    offered = {name for name, value in vars(flexvideo).items() if not isinstance(value, ModuleType)}
    listed = set(re.findall(r"\w+", str(flexvideo.__doc__)))
    assert {name for name in offered if not name.startswith("_")} <= listed
