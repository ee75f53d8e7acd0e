#!/bin/sh
# sh examples/cifar100/run.sh [plan|tournament] [OPTION...]
#
# ResNet-50, ViT-B/16 and R50+ViT-B/16 on CIFAR-100, from weights that have all learned from
# ImageNet-21k. `plan` says what it costs and trains nothing. What is given after it is added, and
# counts where it is given here too. The same command again goes on where it stopped.
set -eu
command=${1:-plan}
[ $# -eq 0 ] || shift
exec orchestrator "$command" resnet vit hybrid \
    --dataset cifar100 --scale base --weights in21k \
    --searches 3 --trials 8 --max-epochs 9 --final-seeds 1 --audit 0.1 \
    --gpus-per-worker 1 --name cifar100-in21k "$@"
