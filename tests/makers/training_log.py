"""What nnU-Net writes into training_log_*.txt, as far as it is read."""

LOG = """
2026-01-01 10:00:00.000001: Epoch 0
2026-01-01 10:00:00.000001: Current learning rate: 0.01
2026-01-01 10:00:09.000001: train_loss -0.25
2026-01-01 10:00:09.000001: val_loss -0.5
2026-01-01 10:00:09.000001: Pseudo dice [np.float32(0.5), np.float32(0.25)]
2026-01-01 10:00:09.000001: Epoch time: 9.0 s
2026-01-01 10:00:10.000001: Epoch 1
2026-01-01 10:00:19.000001: train_loss -0.75
2026-01-01 10:00:19.000001: Pseudo dice [nan]
"""
