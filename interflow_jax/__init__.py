"""Predicting from every depth of a network and learning how to weigh those predictions.

The reference implementation of "Interflow: Aggregating Multi-layer Feature Mappings with
Attention Mechanism" (Cai, 2021).
"""

from interflow_jax import data
from interflow_jax.budget import ExitFrontier, failure_ranking, fit_temperature, leaving
from interflow_jax.config import ModelConfig, build
from interflow_jax.depth import truncate
from interflow_jax.early_exit import EarlyExit, Exits, confidence
from interflow_jax.export import load_exported, load_safetensors, to_safetensors, to_stablehlo
from interflow_jax.fusion import Fusion, fit_fusion
from interflow_jax.methods import BASELINES, METHODS, Method, default_taps
from interflow_jax.metrics import EvalMetrics, TrainMetrics
from interflow_jax.model import Interflow, Prediction
from interflow_jax.networks import load_network, network_layers
from interflow_jax.ops.convolution import conv3x3, cpu_compiler_options
from interflow_jax.ops.memory import keep_freed_memory
from interflow_jax.optimizer import learning_rate_schedule, make_optimizer
from interflow_jax.pretrained import read_pretrained, with_backbone
from interflow_jax.recalibration import recalibrate
from interflow_jax.saved_run import TrainedRun, load_run
from interflow_jax.steps import TrainState, create_state, eval_step, predict, train_step
from interflow_jax.switch import switch_arguments
from interflow_jax.taps import Layer, Taps, layers
from interflow_jax.trainer import Trainer
from interflow_jax.version import __version__
from interflow_jax.vgg import StrideVGG

NNXTaps = Taps  # what 0.1 called it for NNX networks

__all__ = [
    "BASELINES",
    "METHODS",
    "EarlyExit",
    "EvalMetrics",
    "ExitFrontier",
    "Exits",
    "Fusion",
    "Interflow",
    "Layer",
    "Method",
    "ModelConfig",
    "NNXTaps",
    "Prediction",
    "StrideVGG",
    "Taps",
    "TrainMetrics",
    "TrainState",
    "TrainedRun",
    "Trainer",
    "__version__",
    "build",
    "confidence",
    "conv3x3",
    "cpu_compiler_options",
    "create_state",
    "data",
    "default_taps",
    "eval_step",
    "failure_ranking",
    "fit_fusion",
    "fit_temperature",
    "keep_freed_memory",
    "layers",
    "learning_rate_schedule",
    "leaving",
    "load_exported",
    "load_network",
    "load_run",
    "load_safetensors",
    "make_optimizer",
    "network_layers",
    "predict",
    "read_pretrained",
    "recalibrate",
    "switch_arguments",
    "to_safetensors",
    "to_stablehlo",
    "train_step",
    "truncate",
    "with_backbone",
]
