"""A loop of one's own: a conventional start, then cycles, then the ensemble of their minima."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fge
from fge.data import load_dataset
from fge.metrics import summary

EPOCHS, START, CYCLE = 8, 3, 2  # snapshots after 4, 6 and 8 epochs

torch.manual_seed(0)
data = load_dataset("fashion-mnist-mini", train_size=2000, val_fraction=0)
train, test = (TensorDataset(s.images / 255, s.labels) for s in (data.train, data.test))
loader = DataLoader(train, batch_size=64, shuffle=True)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, stride=2),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(32 * 6 * 6, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
loss_fn = nn.CrossEntropyLoss()
cycle = None
for epoch in range(EPOCHS):
    if epoch == START:
        cycle = fge.FGE(
            model,
            optimizer,
            cycle_steps=CYCLE * len(loader),
            max_lr=0.1,
            min_lr=0.005,
            out="run/own-loop",
            average=0.3,  # a member is the mean of the weights over the end of its descent,
            refresh=loader,  # with batch-norm statistics of its own
            overwrite=True,
        )
    for x, y in loader:
        loss_fn(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if cycle is not None:
            cycle.step()

batches = DataLoader(test, batch_size=500)
members = cycle.ensemble().predict_members(batches)  # (S, N, C)
targets = data.test.labels.numpy()
for name, probs in {"last network": members[-1], "ensemble": members.mean(dim=0)}.items():
    figures = summary(probs.numpy(), targets)
    print(f"{name}: error {figures['error']:.2f} %, NLL {figures['nll']:.3f}")
