"""`EnergyCallback` for tf_keras."""

from __future__ import annotations

import tf_keras

from tf_lns.energy.callback import EnergyCallbackCore


class EnergyCallback(EnergyCallbackCore, tf_keras.callbacks.Callback):
    """`tf_lns.EnergyCallback` for tf_keras: what a run would have cost on a table's hardware.

    The operations of each distinct step (shapes of the batch, what is trained) are counted
    once, see `tf_lns.energy.tally`; from then on steps are multiplied. Logs and history gain

    * `energy_j`: energy of the arithmetic of all training steps so far, in J;
    * `energy_per_sample_j`: the same per sample trained on;
    * `val_energy_j`, `val_energy_per_sample_j`: those of validation.

    They are computed, not measured, and mean nothing without the table. Callbacks that stand
    after this one see them: put `CSVLogger` behind it. `tensorboard --logdir` shows the
    account in the tab LNS ENERGY.

    Args:
        log_dir: Folder for TensorBoard and for the counters, from which a run that goes on
            after an interruption (`tf_keras.callbacks.BackupAndRestore`) takes them up again.
            None keeps everything in memory.
        table: Name of a built-in table, path of a file, or an `EnergyTable`.
        batch: (inputs, targets) of one step: real data, on which the numerics of activations,
            errors and gradients are computed. Steps are counted by their own shapes.
        compare: Whether `report` also prices the counts in other formats.
        update_freq: `"epoch"`, or a number of steps after which counters are written to
            `log_dir` as well.
        numerics_freq: Number of epochs after which the numerics are written to `log_dir`:
            shares of saturated, underflowed and zero values per tensor, and a histogram.
            None for never.

    Raises:
        TypeError: An argument of a wrong type.
        ValueError: No such table, or a number out of range.

    Example:
        >>> energy = tf_lns.tfmot.EnergyCallback("logs/lns")
        >>> model.fit(x, y, callbacks=[energy])
        >>> energy.report()
    """
