"""EnergyCallback: every step is counted once, whatever Keras does around it."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

import tf_lns
from tf_lns.energy import tally, tally_evaluation

K = keras.layers
X, Y = np.random.default_rng(0).normal(size=(70, 7)).astype("float32"), np.zeros((70, 3), "float32")


def net(lns=True, optimizer=None, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((7,)), K.Dense(5, activation="relu"), K.Dense(3)])
    if lns:
        model = tf_lns.quantize_model(model, tf_lns.LNSConfig())
    model.compile(optimizer or tf_lns.LNSMadam(), "mse", **options)
    return model


def joules(model, sizes, count=tally):
    """Energy of one step of each of these batch sizes."""
    return sum(count(model, n).energy().total_pj for n in sizes) * 1e-12


def fit(model, callbacks, epochs=2, **options):
    options = {"batch_size": 16, "verbose": 0, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=callbacks, **options).history


EPOCH = [16] * 4 + [6]  # batch sizes of 70 samples


@pytest.mark.parametrize("lns", [True, False], ids=["lns", "float"])
def test_logs_are_sums_of_steps(lns):
    model, energy = net(lns, None if lns else "adam"), tf_lns.EnergyCallback()
    history = fit(model, [energy], validation_data=(X[:20], Y[:20]))
    once = joules(model, EPOCH)
    assert history["energy_j"] == pytest.approx([once, 2 * once], rel=1e-12)
    assert history["energy_per_sample_j"] == pytest.approx([once / 70] * 2, rel=1e-12)
    validation = joules(model, [16, 4], tally_evaluation)
    assert history["val_energy_j"] == pytest.approx([validation, 2 * validation], rel=1e-12)
    assert history["val_energy_per_sample_j"] == pytest.approx([validation / 20] * 2)
    assert energy.energy.total_pj == pytest.approx(2e12 * once)
    assert energy.energy.samples == 140


@pytest.mark.parametrize(
    "options",
    [
        {"steps_per_execution": 3},
        {"steps_per_execution": 16},
        {"jit_compile": True},
        {"jit_compile": True, "steps_per_execution": 2},
        {"run_eagerly": True},
    ],
    ids=str,
)
def test_ways_to_execute(options):
    model, energy = net(**options), tf_lns.EnergyCallback()
    history = fit(model, [energy])
    assert history["energy_j"][-1] == pytest.approx(2 * joules(model, EPOCH), rel=1e-12)
    assert sum(energy.ledger.training.steps.values()) == 10


def test_gradient_accumulation():
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=5)
    model, energy = net(False, optimizer), tf_lns.EnergyCallback()
    history = fit(model, [energy])
    assert history["energy_j"][-1] == pytest.approx(2 * joules(model, EPOCH), rel=1e-12)


def test_training_is_the_same_with_and_without():
    models = [net(), net()]
    fit(models[0], [])
    fit(models[1], [tf_lns.EnergyCallback()])
    for a, b in zip(models[0].variables, models[1].variables, strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


def test_early_stopping_and_callbacks_behind_it_see_the_energy(monkeypatch):
    monkeypatch.setattr("tf_lns.energy.callback._LOOK_EVERY", -1.0)  # at every batch
    seen = []

    class Behind(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs.get("energy_j"))
            if batch == 2:
                self.model.stop_training = True

    model, energy = net(), tf_lns.EnergyCallback()
    history = fit(model, [energy, Behind()])
    assert history["energy_j"] == pytest.approx([joules(model, [16] * 3)])
    assert seen[0] is None  # the first step is counted when the second begins
    assert seen[1:] == pytest.approx([joules(model, [16] * 2), joules(model, [16] * 3)])


def test_csv_logger_and_the_progress_bar(tmp_path, capsys):
    path = tmp_path / "log.csv"
    fit(net(), [tf_lns.EnergyCallback(), keras.callbacks.CSVLogger(path)], verbose=1)
    assert "energy_j" in path.read_text().splitlines()[0]
    assert "energy_per_sample_j" in capsys.readouterr().out


def test_fitting_again_and_without_it():
    model, energy = net(), tf_lns.EnergyCallback()
    once = joules(model, EPOCH)
    fit(model, [energy], epochs=1)
    compiled = model.train_function
    assert fit(model, [energy], epochs=1)["energy_j"] == pytest.approx([2 * once])
    assert model.train_function is compiled  # nothing was traced again
    fit(model, [], epochs=1)
    assert "train_step" not in vars(model)
    other = tf_lns.EnergyCallback()
    assert fit(model, [other], epochs=1)["energy_j"] == pytest.approx([once])


def test_evaluate_alone():
    model, energy = net(), tf_lns.EnergyCallback()
    model.evaluate(X, Y, batch_size=16, verbose=0, callbacks=[energy])
    expected = joules(model, EPOCH, tally_evaluation)
    assert energy.ledger.validation.joules(energy._prices) == pytest.approx(expected)
    assert "test_step" not in vars(model)


def test_batches_of_varying_length():
    model = keras.Sequential([keras.Input((None, 3)), K.SimpleRNN(4)])
    model.compile("sgd", "mse")
    lengths = [5, 9, 5, 2]

    def batches():
        for n in lengths:
            yield np.ones((2, n, 3), "float32"), np.ones((2, 4), "float32")

    data = tf.data.Dataset.from_generator(
        batches,
        output_signature=(tf.TensorSpec((2, None, 3)), tf.TensorSpec((2, 4))),
    )
    energy = tf_lns.EnergyCallback()
    model.fit(data, verbose=0, callbacks=[energy])
    macs = sum(2 * n * (3 * 4 + 4 * 4) for n in lengths)
    assert energy.ledger.combined().macs("forward") == macs
    assert len(energy.ledger.tallies) == 3


def test_sample_weights_and_a_custom_step():
    class Custom(keras.Model):
        def train_step(self, data):
            logs = super().train_step(data)
            return {**logs, "own": logs["loss"] * 2}

    x = keras.Input((7,))
    model = Custom(x, K.Dense(3)(x))
    model.compile("sgd", "mse")
    energy = tf_lns.EnergyCallback()
    history = fit(model, [energy], epochs=1, sample_weight=np.ones(70))
    assert history["own"]
    assert history["energy_j"][0] > 0
    assert energy.ledger.combined().macs("forward") == 70 * 7 * 3


def test_a_frozen_layer_makes_another_signature():
    model, energy = net(False, "adam"), tf_lns.EnergyCallback()
    fit(model, [energy], epochs=1)
    first = joules(model, EPOCH)
    model.layers[0].trainable = False
    model.compile("adam", "mse")
    second = joules(model, EPOCH)
    assert second < first
    history = fit(model, [energy], epochs=1)
    assert history["energy_j"] == pytest.approx([first + second])
    model.layers[0].trainable = True


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("same", [True, False])
def test_after_an_interrupted_fit_everything_is_counted(same):
    model, energy = net(), tf_lns.EnergyCallback()
    with pytest.raises(KeyboardInterrupt):
        fit(model, [energy, Stop()])
    once = joules(model, EPOCH)
    if same:  # the steps before the interruption belong to it, too
        history = fit(model, [energy], epochs=1)
        assert history["energy_j"] == pytest.approx([once + joules(model, [16] * 3)])
    else:
        history = fit(model, [tf_lns.EnergyCallback()], validation_data=(X, Y))
        assert history["energy_j"] == pytest.approx([once, 2 * once])
        assert len(history["val_energy_j"]) == 2


def test_compiling_again_goes_on():
    model, energy = net(), tf_lns.EnergyCallback()
    once = joules(model, EPOCH)
    fit(model, [energy], epochs=1)
    model.compile(tf_lns.LNSMadam(second_moment="lns8:4"), "mse")
    history = fit(model, [energy], epochs=1)
    assert history["energy_j"] == pytest.approx([once + joules(model, EPOCH)])


def test_two_models_and_two_callbacks():
    lns, plain, energy = net(), net(False, "adam"), tf_lns.EnergyCallback()
    a, b = joules(lns, EPOCH), joules(plain, EPOCH)
    assert fit(lns, [energy], epochs=1)["energy_j"] == pytest.approx([a])
    assert fit(plain, [energy], epochs=1)["energy_j"] == pytest.approx([a + b])
    assert fit(lns, [energy], epochs=1)["energy_j"] == pytest.approx([2 * a + b])

    others = tf_lns.EnergyCallback(), tf_lns.EnergyCallback(table="jouppi-7nm")
    fit(lns, [*others], epochs=1)
    assert [len(c.ledger.tallies) for c in others] == [2, 2]
    assert others[0].energy.total_pj > others[1].energy.total_pj > 0
    assert "train_step" not in vars(lns)


def test_a_model_without_a_call():
    class Gan(keras.Model):
        def __init__(self):
            super().__init__()
            self.maker, self.judge = K.Dense(3, name="maker"), K.Dense(1, name="judge")
            self.maker.build((None, 7))
            self.judge.build((None, 3))

        def train_step(self, data):
            x = data[0]
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.judge(self.maker(x)))
            gradients = tape.gradient(loss, self.maker.trainable_variables)
            self.optimizer.apply(gradients, self.maker.trainable_variables)
            return {"loss": loss}

    model, energy = Gan(), tf_lns.EnergyCallback()
    model.compile("sgd")
    assert fit(model, [energy], epochs=1)["energy_j"][0] > 0
    combined = energy.ledger.combined()
    assert [combined.macs(p) for p in ("forward", "error", "gradient")] == [1680, 210, 1470]


def test_what_cannot_be_counted_is_no_reason_to_stop(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no way")

    monkeypatch.setattr("tf_lns.energy.callback.count", fail)
    with pytest.warns(UserWarning, match="no way"):
        history = fit(net(), [tf_lns.EnergyCallback()])
    assert len(history["loss"]) == 2


def test_a_batch_that_does_not_fit_is_no_reason_to_stop(tmp_path):
    wrong = (X[:4, :3], Y[:4])
    with pytest.warns(UserWarning, match="numerics of `batch`"):
        history = fit(net(), [tf_lns.EnergyCallback(tmp_path, batch=wrong)])
    assert len(history["energy_j"]) == 2


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def test_the_total_goes_on_after_a_backup(tmp_path):
    def run(*callbacks):
        model = net()
        energy = tf_lns.EnergyCallback(tmp_path / "log")
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
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
        energy = tf_lns.EnergyCallback(tmp_path / "log", update_freq=2)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=3)
        return energy, fit(net(), [energy, backup, *callbacks], epochs=3)

    class InterruptBatch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(InterruptBatch())
    energy, _ = run()
    steps = sum(energy.ledger.training.steps.values())
    assert steps == pytest.approx(int(energy.model.optimizer.iterations.numpy()))


def test_a_torn_file_of_counters_is_no_reason_to_stop(tmp_path):
    model = net()
    fit(model, [tf_lns.EnergyCallback(tmp_path)], epochs=1)
    path = tmp_path / "energy.jsonl"
    text = path.read_text()
    path.write_text(text[:-30])
    again = tf_lns.EnergyCallback(tmp_path)
    fit(model, [again], epochs=1)
    assert sum(again.ledger.training.steps.values()) == pytest.approx(10)


def test_event_file_and_reports(tmp_path, capsys):
    from tf_lns.energy import events

    model = net()
    energy = tf_lns.EnergyCallback(tmp_path, batch=(X[:8], Y[:8]), update_freq=2)
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
    assert data["period"] == "run"
    assert energy.to_csv(tmp_path / "energy.csv").startswith("layer,pass,kind")
    assert (tmp_path / "energy.csv").is_file()


def test_numerics_see_what_the_quantizers_see():
    from tf_lns.energy.numerics import StepNumerics, weight_numerics

    model = keras.Sequential([keras.Input((7,)), K.Dense(3, name="dense")])
    model = tf_lns.quantize_model(
        model, tf_lns.LNSConfig(activations="lns4:1", errors="lns8:8", gradients="lns5:1")
    )
    model.compile(tf_lns.LNSMadam(), "mse")
    x = np.concatenate([np.zeros((2, 7)), 2.0 ** np.arange(14).reshape(2, 7)]).astype("float32")
    before = [v.numpy().copy() for v in model.variables]
    found = {e.role: e for e in StepNumerics(model, (x, np.zeros((4, 3))))()}
    assert set(found) == {"activations", "errors", "gradients"}
    assert {e.layer for e in found.values()} == {"dense"}
    acts = found["activations"]
    assert (acts.elements, acts.zero, acts.first, acts.counts) == (28, 0.5, 0, (1,) * 14)
    # 6 octaves below 2^13 are 2^7 and up; 2^6 lies within half a step, the six below do not
    assert acts.underflowed == pytest.approx(6.5 / 28, abs=0.51 / 28)
    assert acts.saturated == 0
    assert found["gradients"].elements == 21
    (weights,) = weight_numerics(model)
    assert (weights.layer, weights.elements, sum(weights.counts)) == ("dense", 21, 21)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.variables, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"log_dir": 3}, TypeError, "log_dir"),
        ({"table": "horowitz"}, ValueError, "horowitz-45nm"),
        ({"update_freq": 0}, ValueError, "update_freq"),
        ({"update_freq": "batch"}, TypeError, "update_freq"),
        ({"numerics_freq": 1.5}, TypeError, "numerics_freq"),
        ({"log_dir": ""}, ValueError, "log_dir"),
        ({"batch": 32}, TypeError, "batch"),
        ({"compare": "fp8"}, TypeError, "compare"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        tf_lns.EnergyCallback(**arguments)


def test_before_training():
    with pytest.raises(ValueError, match="train a model"):
        tf_lns.EnergyCallback().report()


def test_replicas(run_python):
    run_python(
        """
import numpy as np, tensorflow as tf, keras, tf_lns
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(5)])
    model.compile("sgd", "mse")
energy = tf_lns.EnergyCallback()
model.fit(np.ones((24, 7)), np.ones((24, 5)), batch_size=8, epochs=2, verbose=0, callbacks=[energy])
combined = energy.ledger.combined()
assert combined.macs("forward") == 2 * 24 * 7 * 5, combined.macs("forward")
assert combined.macs("gradient") == 2 * 24 * 7 * 5
assert energy.ledger.training.samples == 48
assert sum(energy.ledger.training.steps.values()) == 6
# every replica updates its own copy
assert combined.count("multiply", "update") >= 2 * 6 * 40
"""
    )
