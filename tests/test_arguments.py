"""Wrong arguments of the Python API: one line that names the argument and what came."""

import numpy as np
import PIL.Image
import pytest
import small
import tensorflow as tf

import larq_adambnn
from larq_adambnn import (
    callbacks,
    data,
    distillation,
    export,
    inference,
    layers,
    losses,
    models,
    optimizers,
    quantizers,
)
from larq_adambnn.errors import UsageError
from larq_adambnn.models.common import check_arguments

IMAGES = np.zeros((4, 32, 32, 3), np.uint8)


def rows(count=4, labels=None):
    """Examples of one's own."""
    labels = np.zeros(count, np.int64) if labels is None else np.asarray(labels)
    return tf.data.Dataset.from_tensor_slices((np.zeros((count, 32, 32, 3), np.uint8), labels))


def own(train=None, test=None, class_names=("a", "b"), **options):
    options = {"image_size": 32, "batch_size": 2, **options}
    return data.from_datasets(train or rows(), test or rows(), class_names, **options)


def build(name="reactnet_a", input_shape=(32, 32, 3), num_classes=2, **options):
    return models.build(name, input_shape=input_shape, num_classes=num_classes, **options)


@pytest.fixture(scope="module")
def network():
    return small.network((32, 32, 3), 2)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "x.png"
    PIL.Image.fromarray(IMAGES[0]).save(path)
    return str(path)


def one_line(call, argument):
    with pytest.raises((ValueError, UsageError)) as raised:
        call()
    text = str(raised.value)
    assert argument in text and "\n" not in text and len(text) < 400, text
    assert "xpected" in text, text


def digits(**options):
    return data.load("digits", **options)


def prepared(**changes):
    fields = {"image_size": 32, "crop": "none", "channels": 3}
    fields |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return data.Preparation(**{**fields, **changes})


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        # data
        (lambda: data.load(None), "name=None"),
        (lambda: data.load(b"digits"), "name=b'digits'"),
        (lambda: data.load("digits", None), "data_dir=None"),
        (lambda: digits(train_images=-5), "train_images=-5"),
        (lambda: digits(train_images=2.5), "train_images=2.5"),
        (lambda: digits(train_images=True), "train_images=True"),
        (lambda: digits(bad_images="drop"), "bad_images='drop'"),
        (lambda: digits(split=3), "split=3"),
        (lambda: digits(left_out=["a"]), "left_out=['a']"),
        (lambda: digits(settings={"image_size": 32}), "settings={'image_size': 32}"),
        (lambda: digits(size=32), "size"),
        (lambda: digits(image_size=32.0), "image_size=32.0"),
        (lambda: digits(image_size="32"), "image_size='32'"),
        (lambda: digits(image_size=31), "image_size=31"),
        (lambda: digits(batch_size=True), "batch_size=True"),
        (lambda: digits(flip="no"), "flip='no'"),
        (lambda: digits(augment=0), "augment=0"),
        (lambda: digits(crop=None), "crop=None"),
        (lambda: digits(lighting="0.1"), "lighting='0.1'"),
        (lambda: digits(lighting=float("nan")), "lighting=nan"),
        (lambda: digits(lighting_range=[1]), "lighting_range=[1]"),
        (lambda: digits(mixup=[0.2]), "mixup=[0.2]"),
        (lambda: digits(randaugment=15), "randaugment=15"),
        (lambda: digits(seed=-1), "seed=-1"),
        (lambda: own(class_names=()), "class_names=()"),
        (lambda: own(class_names=("a", "a")), "class_names=('a', 'a')"),
        (lambda: own(class_names="ab"), "class_names='ab'"),
        (lambda: own(class_names=[0, 1]), "class_names=[0, 1]"),
        (lambda: own(shuffle=-1), "shuffle=-1"),
        (lambda: own(shuffle=1.5), "shuffle=1.5"),
        (lambda: own(train=IMAGES.tolist()), "train="),
        (lambda: own(mean=0.5), "mean=0.5"),
        (lambda: own(std=[1.0, 1.0, "1"]), "std=[1.0, 1.0, '1']"),
        (lambda: own(name=None), "name=None"),
        (lambda: own(train=rows(labels=[0, 1, 2, 0])), "training example 2 has label 2; expected"),
        (lambda: own(test=rows(labels=[0, -1, 0, 0])), "test example 1 has label -1; expected"),
        (lambda: own().train(-1), "first_iteration=-1"),
        (lambda: own().train(shard=2), "shard=2"),
        (lambda: own().evaluation(batch_size=-1), "batch_size=-1"),
        (lambda: own().examples(0), "count=0"),
        (lambda: prepared(image_size="32"), "image_size='32'"),
        (lambda: prepared(crop="centre"), "crop='centre'"),
        (lambda: prepared(channels=2), "channels=2"),
        (lambda: prepared(mean=(0.5,)), "mean=(0.5,)"),
        (lambda: prepared(std=(0.5, 0.5, 0.0)), "std=(0.5, 0.5, 0.0)"),
        (lambda: export.FineTuning(IMAGES, 1, 1), "batches=<ndarray"),
        (lambda: export.FineTuning(rows(), 0, 1), "epochs=0"),
        (lambda: export.FineTuning(rows(), 1, 1.5), "iterations_per_epoch=1.5"),
        # models and layers
        (lambda: build(None), "name=None"),
        (lambda: build("resnet"), "name='resnet'"),
        (lambda: build(pad_values=3), "pad_values=3"),
        (lambda: build(pad_values=None), "pad_values=None"),
        (lambda: build(stem_stride=0), "stem_stride=0"),
        (lambda: build(activation_clip=0), "activation_clip=0"),
        (lambda: build("reactnet18", weight_clip="1"), "weight_clip='1'"),
        (lambda: build("reactnet18", stem_stride=1.5), "stem_stride=1.5"),
        (lambda: build(width="1"), "width='1'"),
        (lambda: build(width=float("inf")), "width=inf"),
        (lambda: build(input_shape=32), "input_shape=32"),
        (lambda: build(input_shape=(32, 32, 0)), "input_shape=(32, 32, 0)"),
        (lambda: build(input_shape=(None, None, 3)), "input_shape=(None, None, 3)"),
        (lambda: build("QuickNet", input_shape="224"), "input_shape='224'"),
        (lambda: build(num_classes=True), "num_classes=True"),
        (lambda: build(num_classes=10.0), "num_classes=10.0"),
        (lambda: build("resnet34", sync_batch_norm="yes"), "sync_batch_norm='yes'"),
        (lambda: build("resnet34", pad_values=1), "pad_values=1"),
        (lambda: larq_adambnn.binarize("reactnet_a"), "model='reactnet_a'"),
        (lambda: layers.binarization(None), "model=None"),
        (lambda: quantizers.ApproxSign(-1.0), "clip=-1.0"),
        (lambda: quantizers.ScaledSign(clip=None), "clip=None"),
        (lambda: quantizers.Switchable(None), "quantizer=None"),
        (lambda: quantizers.Switchable("ste_sign", on="off"), "on='off'"),
        # callbacks
        (lambda: callbacks.TwoStepSwitch("1"), "epoch='1'"),
        (lambda: callbacks.TwoStepSwitch(True), "epoch=True"),
        (lambda: callbacks.TwoStepSwitch(1, first=True), "first=True"),
        (lambda: callbacks.TwoStepSwitch(1, second=(1, 1)), "second=(1, 1)"),
        (lambda: callbacks.TwoStepSwitch(1, reload=3), "reload=3"),
        (lambda: callbacks.WeightDecaySchedule(5e-6), "values=5e-06"),
        (lambda: callbacks.WeightDecaySchedule([0, 1]), "values=[0, 1]"),
        (lambda: callbacks.WeightDecaySchedule({0: "a"}), "values={0: 'a'}"),
        (lambda: callbacks.WeightDecaySchedule({0: 1.0, 1.5: 0.0}), "1.5: 0.0"),
        (lambda: callbacks.LinearDecay("0.1", 2), "learning_rate='0.1'"),
        (lambda: callbacks.LinearDecay(0.1, 2.0), "epochs=2.0"),
        (lambda: callbacks.LinearDecay(0.1, ("2",)), "epochs=('2',)"),
        (lambda: callbacks.LinearDecay(0.1, 2, published=1), "published=1"),
        (lambda: callbacks.RateSchedule(0.1, 2, shape=1), "shape=1"),
        (lambda: callbacks.RateSchedule(0.1, 2, warmup="0.1"), "warmup='0.1'"),
        (lambda: callbacks.RateSchedule(0.1, 2, by_epoch=0), "by_epoch=0"),
        (lambda: callbacks.AverageWeights("0.9"), "momentum='0.9'"),
        (lambda: callbacks.AverageWeights(None), "momentum=None"),
        (lambda: callbacks.ActivationSaturation("x.png"), "images='x.png'"),
        (lambda: callbacks.ActivationSaturation(IMAGES[:0]), "images="),
        (lambda: callbacks.ActivationSaturation(IMAGES, every=0), "every=0"),
        (lambda: callbacks.UpdateSize(every=0), "every=0"),
        # losses, distillation, optimizers
        (lambda: losses.CrossEntropy(1), "label_smoothing=1"),
        (lambda: losses.DistributionLoss(reduction="all"), "all"),
        (lambda: losses.DistributionLoss()(np.zeros((4, 1)), np.zeros((4, 3))), "y_true"),
        (lambda: distillation.Distiller("student"), "student='student'"),
        (lambda: optimizers.Adam(learning_rate="x"), "learning_rate='x'"),
        (lambda: optimizers.Adam(learning_rate=-1.0), "learning_rate=-1.0"),
        (lambda: optimizers.Adam(weight_decay=None), "weight_decay=None"),
        (lambda: optimizers.Adam(beta_1=1.0), "beta_1=1.0"),
        (lambda: optimizers.Adam(beta_2="0.9"), "beta_2='0.9'"),
        (lambda: optimizers.Adam(epsilon=-1), "epsilon=-1"),
        (lambda: optimizers.Adam(amsgrad="yes"), "amsgrad='yes'"),
        (lambda: optimizers.Adam(decoupled=1), "decoupled=1"),
        (lambda: optimizers.Adam(decays="all"), "decays='all'"),
        (lambda: optimizers.Adam(gradient_floor=-0.1), "gradient_floor=-0.1"),
        (lambda: optimizers.SGD(silent_decay="x"), "silent_decay='x'"),
        (lambda: optimizers.RMSprop(silent_iterations=0), "silent_iterations=0"),
        (lambda: optimizers.Diode(momentum=1.0), "momentum=1.0"),
        (lambda: optimizers.Diode(memory="x"), "memory='x'"),
        (lambda: optimizers.Diode(size=0), "size=0"),
        (lambda: optimizers.SGD("x"), "learning_rate='x'"),
        (lambda: optimizers.SGD(0.1, momentum=2), "momentum=2"),
        (lambda: optimizers.RMSprop(0.1, weight_decay="x"), "weight_decay='x'"),
    ],
)
def test_wrong_arguments(call, argument):
    one_line(call, argument)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"teacher": 3}, "teacher=3"),
        ({"label_weight": "0.5"}, "label_weight='0.5'"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"attention": float("nan")}, "attention=nan"),
        ({"microbatches": 2.0}, "microbatches=2.0"),
    ],
)
def test_wrong_arguments_of_the_distiller(network, options, argument):
    one_line(lambda: distillation.Distiller(network, **options), argument)


def floats(count=4, size=32):
    return np.zeros((count, size, size, 3), np.float32)


@pytest.mark.parametrize(
    ("images", "options", "argument"),
    [
        (floats(0), {}, "images="),
        (floats(size=16), {}, "images="),
        (floats()[0], {}, "images="),
        (None, {}, "images=None"),
        ("x.png", {}, "images='x.png'"),
        (rows(), {}, "images="),
        (floats(), {"labels": [0, 1]}, "labels="),
        (floats(), {"labels": np.zeros((4, 1), int)}, "labels="),
        (floats(), {"labels": np.zeros(4)}, "labels="),
        (floats(), {"labels": rows()}, "labels="),
        (floats(), {"class_names": ["a"]}, "class_names=['a']"),
        (floats(), {"class_names": "ab"}, "class_names='ab'"),
        (floats(), {"int8": "yes"}, "int8='yes'"),
        (floats(), {"io_type": "uint8"}, "io_type='uint8'"),
        (floats(), {"io_type": "int8"}, "int8=False"),
        (floats(), {"calibration": rows()}, "calibration="),
        (floats(), {"preparation": {"size": 32}}, "preparation="),
        (floats(), {"fine_tuning": 3}, "fine_tuning=3"),
        (floats(), {"processes": 0}, "processes=0"),
    ],
)
def test_wrong_arguments_of_the_export(network, images, options, argument):
    one_line(lambda: export.export(network, images, **options), argument)


def test_wrong_arguments_of_what_reads_an_export(tmp_path):
    one_line(lambda: export.export("model.h5", floats()), "model='model.h5'")
    one_line(lambda: export.description.read(None), "path=None")
    with pytest.raises(UsageError, match=r"none\.json: expected what an export wrote"):
        export.description.read(str(tmp_path / "none.json"))
    one_line(lambda: export.description.find(3, b""), "path=3")
    one_line(lambda: export.description.find("x.tflite", "bytes"), "tflite='bytes'")


def test_wrong_arguments_of_inference(network, picture, tmp_path):
    dataset, names = own(), ["a", "b"]
    prepared = dataset.preparation
    assert len(inference.classify(network, [picture], prepared, names)[0]) == 2
    for arguments, argument in (
        ((network, picture, prepared, names), f"files='{picture}'"),
        ((network, [], prepared, names), "files=[]"),
        ((network, [3], prepared, names), "files=[3]"),
        (("x.tflite", [picture], prepared, names), "network='x.tflite'"),
        ((network, [picture], None, names), "preparation=None"),
        ((network, [picture], prepared, "ab"), "class_names='ab'"),
        ((network, [picture], prepared, ["a", "b", "c"]), "class names"),
        ((network, [picture], own(image_size=64).preparation, names), "(64, 64, 3)"),
    ):
        one_line(lambda arguments=arguments: inference.classify(*arguments), argument)
    with pytest.raises(UsageError, match=r"images: .*none\.png is no file"):
        inference.classify(network, [picture, tmp_path / "none.png"], prepared, names)
    for arguments, argument in (
        (("x.tflite", dataset), "network='x.tflite'"),
        ((network, "digits"), "dataset='digits'"),
        ((network, rows()), "dataset="),
        ((network, dataset, 1), "split=1"),
        ((network, own(class_names=["a", "b", "c"])), "class names"),
        ((network, own(image_size=64)), "(64, 64, 3)"),
    ):
        one_line(lambda arguments=arguments: inference.evaluate(*arguments), argument)


def test_a_label_without_a_class_behind_the_first_thousand():
    """Where the package itself reads, it is one line too."""
    labels = np.zeros(1100, int)
    labels[1050] = 7
    dataset = own(train=rows(1100, labels), test=rows(1100, labels), batch_size=550)
    line = "test example 1050 has label 7; expected 0 to 1"
    with pytest.raises(UsageError, match=line):
        dataset.examples(1100)
    with pytest.raises(UsageError, match=line):
        inference.evaluate(small.network((32, 32, 3), 2), dataset)


@pytest.mark.parametrize(
    "call",
    [
        lambda: digits(image_size=np.int64(32), lighting=np.float32(0.5), flip=np.True_),
        lambda: own(mean=np.zeros(3), std=(1, 1, 1)),
        lambda: callbacks.TwoStepSwitch(np.int64(1), first=[True, False]),
        lambda: callbacks.LinearDecay(np.float32(0.1), [1, 2]),
        lambda: callbacks.WeightDecaySchedule({0: 0, np.int64(2): np.float32(0.5)}),
        lambda: optimizers.Adam(tf.keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
        lambda: check_arguments([32, 32, 1], np.int64(2), np.float64(0.1), pad_values=1.0),
    ],
)
def test_numbers_of_numpy_and_lists_are_taken(call):
    call()
