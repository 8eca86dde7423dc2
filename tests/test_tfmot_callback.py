"""The EnergyCallback of tf_keras: every step is counted once, whatever tf_keras does around it."""

import json
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from rich.console import Console

from tests.test_tfmot_optimizer import cell_net
from tf_lns.energy import events, tally, tally_evaluation
from tf_lns.energy.callback import EnergyCallbackCore
from tf_lns.energy.numerics import StepNumerics, weight_numerics
from tf_lns.formats import LNSFormat
from tf_lns.tfmot import EnergyCallback, LNSMadam
from tf_lns.variable import LNSVariable

K = tf_keras.layers
X, Y = np.random.default_rng(0).normal(size=(70, 7)).astype("float32"), np.zeros((70, 3), "float32")
EPOCH = [16] * 4 + [6]  # batch sizes of 70 samples


def net(optimizer=None, **options):
    tf_keras.utils.set_random_seed(1)
    model = tf_keras.Sequential([K.Input((7,)), K.Dense(5, activation="relu"), K.Dense(3)])
    model.compile(optimizer or LNSMadam(gradients="lns5:1"), "mse", **options)
    return model


def joules(model, sizes, count=tally):
    """Energy of one step of each of these batch sizes."""
    return sum(count(model, n).energy().total_pj for n in sizes) * 1e-12


def fit(model, callbacks, epochs=2, **options):
    options = {"batch_size": 16, "verbose": 0, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=callbacks, **options).history


def test_it_is_the_callback_of_keras_under_another_base():
    own = {name for name in vars(EnergyCallback) if not name.startswith("__")}
    assert own == set()
    assert issubclass(EnergyCallback, EnergyCallbackCore)


@pytest.mark.parametrize("optimizer", [None, "adam"], ids=["lns", "float"])
def test_logs_are_sums_of_steps(optimizer):
    model, energy = net(optimizer), EnergyCallback()
    history = fit(model, [energy], validation_data=(X[:20], Y[:20]))
    once = joules(model, EPOCH)
    assert history["energy_j"] == pytest.approx([once, 2 * once], rel=1e-12)
    assert history["energy_per_sample_j"] == pytest.approx([once / 70] * 2, rel=1e-12)
    validation = joules(model, [16, 4], tally_evaluation)
    assert history["val_energy_j"] == pytest.approx([validation, 2 * validation], rel=1e-12)
    assert history["val_energy_per_sample_j"] == pytest.approx([validation / 20] * 2)
    assert energy.energy.total_pj == pytest.approx(2e12 * once)
    assert energy.energy.samples == 140
    assert energy.ledger.combined().macs("forward") == 140 * (7 * 5 + 5 * 3)


@pytest.mark.parametrize(
    "options",
    [
        {"steps_per_execution": 3},
        {"steps_per_execution": 16},
        {"steps_per_execution": "auto"},
        {"jit_compile": True},
        {"jit_compile": True, "steps_per_execution": 2},
        {"run_eagerly": True},
    ],
    ids=str,
)
def test_ways_to_execute(options):
    model, energy = net(**options), EnergyCallback()
    history = fit(model, [energy])
    assert history["energy_j"][-1] == pytest.approx(2 * joules(model, EPOCH), rel=1e-12)
    assert sum(energy.ledger.training.steps.values()) == 10


def test_steps_per_execution_may_grow_while_the_step_stays_compiled():
    model, energy = net(steps_per_execution=2), EnergyCallback()
    fit(model, [energy], epochs=1)
    model.steps_per_execution = 5
    fit(model, [energy], epochs=1)
    assert sum(energy.ledger.training.steps.values()) == 10
    assert energy.ledger.training.samples == 140


def test_training_is_the_same_with_and_without():
    models = [net(), net()]
    fit(models[0], [])
    fit(models[1], [EnergyCallback()])
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_legacy_optimizer_and_loss_scaling():
    for optimizer in (
        tf_keras.optimizers.legacy.SGD(0.01),
        tf_keras.mixed_precision.LossScaleOptimizer(LNSMadam()),
    ):
        model, energy = net(optimizer), EnergyCallback()
        history = fit(model, [energy], epochs=1)
        assert history["energy_j"] == pytest.approx([joules(model, EPOCH)])


def test_early_stopping_and_callbacks_behind_it_see_the_energy(monkeypatch):
    monkeypatch.setattr("tf_lns.energy.callback._LOOK_EVERY", -1.0)  # at every batch
    seen = []

    class Behind(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs.get("energy_j"))
            if batch == 2:
                self.model.stop_training = True

    model, energy = net(), EnergyCallback()
    history = fit(model, [energy, Behind()])
    assert history["energy_j"] == pytest.approx([joules(model, [16] * 3)])
    assert seen[0] is None  # the first step is counted when the second begins
    assert seen[1:] == pytest.approx([joules(model, [16] * 2), joules(model, [16] * 3)])


def test_csv_logger_and_the_progress_bar(tmp_path, capsys):
    path = tmp_path / "log.csv"
    fit(net(), [EnergyCallback(), tf_keras.callbacks.CSVLogger(str(path))], verbose=1)
    assert "energy_j" in path.read_text().splitlines()[0]
    assert "energy_per_sample_j" in capsys.readouterr().out


def test_fitting_again_and_without_it():
    model, energy = net(), EnergyCallback()
    once = joules(model, EPOCH)
    fit(model, [energy], epochs=1)
    compiled = model.train_function
    assert fit(model, [energy], epochs=1)["energy_j"] == pytest.approx([2 * once])
    assert model.train_function is compiled  # nothing was traced again
    fit(model, [], epochs=1)
    assert "train_step" not in vars(model)
    assert sum(energy.ledger.training.steps.values()) == 10


def test_evaluate_alone():
    model, energy = net(), EnergyCallback()
    model.evaluate(X, Y, batch_size=16, verbose=0, callbacks=[energy])
    expected = joules(model, EPOCH, tally_evaluation)
    assert energy.ledger.validation.joules(energy._prices) == pytest.approx(expected)
    assert "test_step" not in vars(model)


def test_batches_of_varying_length():
    model = tf_keras.Sequential([K.Input((None, 3)), K.SimpleRNN(4)])
    model.compile("sgd", "mse")
    lengths = [5, 9, 5, 2]

    def batches():
        for n in lengths:
            yield np.ones((2, n, 3), "float32"), np.ones((2, 4), "float32")

    data = tf.data.Dataset.from_generator(
        batches, output_signature=(tf.TensorSpec((2, None, 3)), tf.TensorSpec((2, 4)))
    )
    energy = EnergyCallback()
    model.fit(data, verbose=0, callbacks=[energy])
    macs = sum(2 * n * (3 * 4 + 4 * 4) for n in lengths)
    assert energy.ledger.combined().macs("forward") == macs
    assert len(energy.ledger.tallies) == 3


class Interrupt(tf_keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def test_the_total_goes_on_after_a_backup(tmp_path):
    def run(*callbacks):
        model = net()
        energy = EnergyCallback(tmp_path / "log")
        backup = tf_keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        return model, energy, fit(model, [energy, backup, *callbacks], epochs=3)

    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(2))
    model, energy, history = run()
    once = joules(model, EPOCH)
    assert history["energy_j"] == pytest.approx([3 * once])  # one epoch, and two before
    assert energy.ledger.training.samples == 3 * 70
    assert energy.notes == []
    # A new run in the same folder starts at zero
    assert run()[2]["energy_j"] == pytest.approx([once, 2 * once, 3 * once])


def test_a_backup_within_an_epoch_is_extrapolated(tmp_path):
    def run(*callbacks):
        energy = EnergyCallback(tmp_path / "log", update_freq=2)
        backup = tf_keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), save_freq=3)
        return energy, fit(net(), [energy, backup, *callbacks], epochs=3)

    class InterruptBatch(tf_keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(InterruptBatch())
    energy, _ = run()
    steps = sum(energy.ledger.training.steps.values())
    assert steps == pytest.approx(int(energy.model.optimizer.iterations.numpy()))


def test_event_file_and_reports(tmp_path, capsys):
    model = net()
    energy = EnergyCallback(tmp_path, batch=(X[:8], Y[:8]), update_freq=2)
    fit(model, [energy])
    (path,) = tmp_path.glob("*.tfevents*")
    kinds = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name:
                kinds[value.tag] = events.entry_of(value.metadata.plugin_data.content)
    assert set(kinds.values()) == {"counts", "progress", "numerics"}
    assert list(kinds.values()).count("counts") == 2

    energy.report(Console(width=120, file=sys.stdout))
    printed = capsys.readouterr().out
    for text in ("10 training steps", "140 samples", "horowitz-45nm", "dense", "fp32", "per run"):
        assert text in printed
    data = json.loads(energy.to_json(tmp_path / "energy.json"))
    assert data["total_pj"] == pytest.approx(energy.energy.total_pj)


def test_the_tab_reads_such_a_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer

    from tf_lns.tensorboard.data import EnergyData

    model = net()
    energy = EnergyCallback(tmp_path / "run")
    fit(model, [energy])
    reader = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={events.PLUGIN_NAME: 0})
    reader.AddRunsFromDirectory(str(tmp_path))
    reader.Reload()
    data = EnergyData(data_provider.MultiplexerDataProvider(reader, str(tmp_path)))
    ctx = context.RequestContext()
    assert [run["run"] for run in data.runs(ctx, "")["runs"]] == ["run"]
    assert len(data.counts(ctx, "", "run")["counts"]) == 2  # of batches of 16 and of 6
    (*_, last) = data.progress(ctx, "", "run")["points"]
    assert sum(last["steps"].values()) == 10
    assert last["joules"]["horowitz-45nm"] == pytest.approx(2 * joules(model, EPOCH))


def test_numerics_see_cells_and_their_gradients():
    values = np.random.default_rng(2).normal(size=(7, 3)).astype("float32")
    model = cell_net(values, LNSFormat(5, 1))
    model.compile(LNSMadam(), "mse")
    before = model.get_weights()
    (weights,) = weight_numerics(model)
    assert (weights.layer, weights.elements, sum(weights.counts)) == ("cells", 21, 21)
    assert (weights.role, weights.format) == ("weights", "lns16:2048")
    # The same as those of a Keras variable with these codes
    assert weights.smallest == pytest.approx(np.log2(LNSVariable(values).scale))
    found = StepNumerics(model, (X[:4], Y[:4]))()
    assert [(e.role, e.layer, e.elements, e.format) for e in found] == [
        ("gradients", "cells", 21, "lns5:1")
    ]
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_on_cells_is_counted():
    model = cell_net(np.random.default_rng(2).normal(size=(7, 3)).astype("float32"))
    model.compile(LNSMadam(), "mse")
    energy = EnergyCallback()
    history = fit(model, [energy])
    assert history["energy_j"][-1] == pytest.approx(2 * joules(model, EPOCH), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"log_dir": 3}, TypeError, "log_dir"),
        ({"table": "horowitz"}, ValueError, "horowitz-45nm"),
        ({"update_freq": 0}, ValueError, "update_freq"),
        ({"update_freq": "batch"}, TypeError, "update_freq"),
        ({"numerics_freq": 1.5}, TypeError, "numerics_freq"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        EnergyCallback(**arguments)


def test_replicas(run_python):
    run_python(
        """
        import numpy as np, tensorflow as tf, tf_keras

        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        from tests.test_tfmot_optimizer import Cells
        from tf_lns.energy.numerics import weight_numerics
        from tf_lns.tfmot import EnergyCallback, LNSMadam

        x, y = np.ones((24, 7), "float32"), np.ones((24, 5), "float32")
        for layer, optimizer in ((tf_keras.layers.Dense(5), "sgd"), (Cells(5), LNSMadam)):
            strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
            with strategy.scope():
                model = tf_keras.Sequential([tf_keras.Input((7,)), layer])
                model.compile(optimizer if optimizer == "sgd" else optimizer(), "mse")
            energy = EnergyCallback("log")
            options = {"batch_size": 8, "epochs": 2, "verbose": 0, "callbacks": [energy]}
            model.fit(x, y, **options)
            combined = energy.ledger.combined()
            assert combined.macs("forward") == 2 * 24 * 7 * 5, combined.macs("forward")
            assert combined.macs("gradient") == 2 * 24 * 7 * 5
            assert energy.ledger.training.samples == 48
            assert sum(energy.ledger.training.steps.values()) == 6
            assert len(weight_numerics(model)) == (optimizer is LNSMadam)
        """
    )
