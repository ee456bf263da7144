"""FGE in a training by the Trainer of Lightning."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fge.data import load_dataset
from fge.integrations.lightning import FGECallback
from fge.metrics import summary

EPOCHS, START, CYCLE = 8, 3, 2  # snapshots after 4, 6 and 8 epochs


class Network(pl.LightningModule):
    """A small network; its optimizer comes without a scheduler."""

    def __init__(self):
        super().__init__()
        layers = nn.Linear(784, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)
        self.layers = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


pl.seed_everything(0)
data = load_dataset("fashion-mnist-mini", train_size=2000, val_fraction=0)
train, test = (TensorDataset(s.images / 255, s.labels) for s in (data.train, data.test))
loader = DataLoader(train, batch_size=64, shuffle=True)
callback = FGECallback(
    start_epoch=START,
    cycle_steps=CYCLE * len(loader),
    max_lr=0.1,
    min_lr=0.005,
    out="run/lightning",
    average=0.3,  # a member is the mean of the weights over the end of its descent,
    refresh=loader,  # with batch-norm statistics of its own
    overwrite=True,
)
trainer = pl.Trainer(max_epochs=EPOCHS, callbacks=[callback], logger=False)
trainer.fit(Network(), loader)

members = callback.ensemble().predict_members(DataLoader(test, batch_size=500))  # (S, N, C)
targets = data.test.labels.numpy()
for name, probs in {"last network": members[-1], "ensemble": members.mean(dim=0)}.items():
    figures = summary(probs.cpu().numpy(), targets)
    print(f"{name}: error {figures['error']:.2f} %, NLL {figures['nll']:.3f}")
