"""report.html of a run, in a real browser."""

import base64
import dataclasses
import io
import json
import shutil

import exports
import numpy as np
import PIL.Image
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from larq_adambnn.files import read_rows
from larq_adambnn.runs import datasets, examination, exporting, report, students
from larq_adambnn.runs.config import load_run
from larq_adambnn.runs.directory import Run
from larq_adambnn.runs.page import charts, render

pytestmark = pytest.mark.usefixtures("small_network")


@pytest.fixture(scope="module")
def dataset(two_step_run):
    return datasets.load(load_run(two_step_run.directory))


@pytest.fixture(scope="module")
def student(two_step_run, dataset, small_network):
    return students.load_student(two_step_run, load_run(two_step_run.directory), dataset)


@pytest.fixture(scope="module")
def made(two_step_run, one_step_run, dataset, small_network, tmp_path_factory):
    """A run with everything that a page can show."""
    run = Run(tmp_path_factory.mktemp("page") / "run")
    shutil.copytree(two_step_run.directory, run.directory)
    config = load_run(run.directory)
    exporting.export_run(run, config, dataset)
    run.compared.write_text(json.dumps({"one_step_run": one_step_run.read_metrics()}))
    run.analysis.write_text('[{"plot": "accuracy.png", "caption": "A figure."}]')
    run.left_out.write_text('{"train": [{"name": "a.png", "reason": "is no image"}]}')
    report.write(run, config)
    return run


@pytest.fixture
def run(made, tmp_path):
    return Run(shutil.copytree(made.directory, tmp_path / "run"))


def spec(run, number):
    """The specification of a figure of a page, read without a browser."""
    text = run.page.read_text()
    return json.loads(text.split('<script type="application/json">')[number + 1].split("<")[0])


def columns(browser, table="layer-table"):
    """The texts of a table's rows."""
    return browser.run(
        "return [...document.getElementById(arguments[0]).tBodies[0].rows]"
        ".map(row => [...row.cells].map(cell => cell.textContent))",
        table,
    )


def hover(browser, element, x, y=0):
    ActionChains(browser.driver).move_to_element_with_offset(element, x, y).perform()


def test_it_opens_from_disk_and_draws_every_figure(made, browser):
    browser.open(made.page)
    assert browser.messages() == []
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.texts(".drawn h3") == [
        "Accuracy",
        "Loss",
        "Measurements",
        "Signs that differ from Keras",
        "Confusion matrix",
    ]
    marks = browser.run(
        "return [...document.querySelectorAll('.drawn svg')].map("
        "svg => svg.querySelectorAll('[class*=mark-] path, [class*=mark-] line').length)"
    )
    assert len(marks) == 5 and min(marks) > 4
    assert made.page.stat().st_size < 2e6
    accuracy = 100 * made.read_metrics()[-1]["val_accuracy"]
    assert f"{accuracy:.2f} %" in " ".join(browser.texts("#result td"))
    assert "check passed" in browser.texts("#export .badge")
    names = ("signs", "channels")
    check = exports.read_json(made.export)["check"]
    for name, line in zip(names, ("worst layer", "worst channel"), strict=True):
        worst = min(check[name], key=check[name].get)
        (told,) = [text for text in browser.texts("#export tr") if text.startswith(line)]
        assert worst in told and f"{100 * check[name][worst]:.4f} %" in told


def test_curves_show_values_under_the_pointer_and_choose_a_run(made, one_step_run, browser):
    browser.open(made.page)
    labels = ["run, test", "run, training", "one_step_run, test", "one_step_run, training"]
    figure = browser.driver.find_element(By.CSS_SELECTOR, ".drawn svg")
    assert browser.texts(".drawn:first-child .role-legend-label text") == labels
    lines = "return [...document.querySelectorAll('.drawn')[0].querySelectorAll('.mark-line path')]"
    assert browser.run(f"{lines}.length") == 4
    hover(browser, figure, figure.size["width"] // 2 - 12)  # the last epoch
    browser.wait("return document.querySelector('#vg-tooltip-element.visible')")
    rows = made.read_metrics()
    told = dict(
        zip(
            browser.texts("#vg-tooltip-element td.key"),
            browser.texts("#vg-tooltip-element td.value"),
            strict=True,
        )
    )
    assert list(told) == ["epoch", "run, test", "run, training"]  # which the other run has not
    assert told["epoch"] == "6"
    assert float(told["run, test"]) == pytest.approx(100 * rows[-1]["val_accuracy"], rel=1e-4)
    assert float(told["run, training"]) == pytest.approx(100 * rows[-1]["accuracy"], rel=1e-4)
    hover(browser, figure, -figure.size["width"] // 4)
    browser.wait("return !document.querySelector('#vg-tooltip-element td').textContent.includes(6)")
    entry = browser.driver.find_elements(By.CSS_SELECTOR, ".drawn .role-legend-symbol path")[2]
    ActionChains(browser.driver).click(entry).perform()
    dimmed = f"return {lines[7:]}.map(line => line.getAttribute('opacity') ?? '1')"
    browser.wait(f"{dimmed[:7]}({dimmed[7:]}).join() === '0.12,0.12,1,0.12'")
    (chooser,) = browser.driver.find_elements(By.CSS_SELECTOR, ".drawn select")
    shown = "return document.querySelectorAll('.drawn')[2].querySelector('.mark-line path')"
    before = browser.run(f"{shown}.getAttribute('d')")
    chooser.find_element(By.XPATH, ".//option[.='dead weights']").click()
    browser.wait(f"{shown}.getAttribute('d') !== '{before}'")
    assert browser.messages() == []
    points = [p for p in spec(made, 0)["data"]["values"] if p["series"] == "one_step_run, test"]
    found = [point["value"] for point in points]
    expected = [100 * row["val_accuracy"] for row in one_step_run.read_metrics()]
    np.testing.assert_allclose(found, expected)


def test_the_layers_sort(made, browser):
    browser.open(made.page)
    headings = [text.rstrip(" ↕") for text in browser.texts("#layer-table th")]
    assert headings == [
        "layer",
        "bits",
        "flips",
        "C2I (%)",
        "saturated (%)",
        "dead (%)",
        "signs kept (%)",
        "ms",
    ]
    rows = {row["layer"]: row for row in read_rows(made.measurements)}  # the last epoch's
    assert [row[0] for row in columns(browser)] == list(rows)
    assert [row[1] for row in columns(browser)] == ["576", "576"]
    buttons = browser.driver.find_elements(By.CSS_SELECTOR, "#layer-table button")
    for heading, column in ((2, "ff_ratio"), (4, "saturation")):
        ascending = sorted(rows, key=lambda name: float(rows[name][column]))
        assert len({rows[name][column] for name in rows}) == 2
        for order in (ascending[::-1], ascending):
            buttons[heading].click()
            assert [row[0] for row in columns(browser)] == order
    assert browser.texts("#layer-table th[aria-sort=ascending]") == ["saturated (%)"]
    buttons[0].click()
    assert [row[0] for row in columns(browser)] == sorted(rows)
    for row in columns(browser):
        assert float(row[4]) == pytest.approx(100 * float(rows[row[0]]["saturation"]), abs=0.005)
        assert 0 < float(row[7]) < 1


def test_it_reads_well_on_a_phone_in_print_and_in_the_dark(made, browser):
    def color(selector, name):
        style = f"getComputedStyle(document.querySelector('{selector}')).{name}"
        return [int(part) for part in browser.run(f"return {style}")[4:-1].split(",")]

    label = ".role-axis-label text"
    browser.open(made.page, width=360, scheme="dark")
    assert browser.run("return document.documentElement.scrollWidth") == 360
    assert max(color("body", "backgroundColor")) < 50
    for selector, name in (("body", "color"), (label, "fill"), (".role-legend-label text", "fill")):
        assert min(color(selector, name)) > 200
    browser.command("Emulation.setEmulatedMedia", media="print")
    try:
        assert color("body", "backgroundColor") == [255, 255, 255]
        assert color(label, "fill") == [0, 0, 0]
        pdf = base64.b64decode(browser.command("Page.printToPDF")["data"])
        assert pdf.startswith(b"%PDF") and 3 <= pdf.count(b"/Type /Page\n") <= 12
    finally:
        browser.command("Emulation.setEmulatedMedia", media="")
    assert browser.messages() == []


def test_the_test_images_are_those_that_the_network_mistakes_most(made, dataset, student):
    found = examination.read(made)
    images, labels = exports.arrays(dataset, "test")
    logits = student.predict(images, verbose=0).astype(np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = odds / odds.sum(-1, keepdims=True)
    predicted = logits.argmax(-1)
    assert (found.split, found.images, found.of) == ("test", 360, 360)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, predicted), 1)
    assert {(c.label, c.predicted): c.images for c in found.confusions} == {
        (i, j): matrix[i, j] for i, j in zip(*matrix.nonzero(), strict=True)
    }
    assert np.trace(matrix) / 360 == pytest.approx(made.read_metrics()[-1]["val_accuracy"])
    own = probabilities[np.arange(360), labels]
    order = np.lexsort((own, predicted == labels))[:24]
    assert [e.name for e in found.examples] == [f"digits test example {i}" for i in order]
    for example, index in zip(found.examples, order, strict=True):
        assert (example.label, example.predicted) == (labels[index], predicted[index])
        assert example.probability == pytest.approx(own[index], rel=1e-4)
        best = np.argsort(-probabilities[index])[:3]
        assert [guess.name for guess in example.guesses] == [str(label) for label in best]
        shares = [guess.probability for guess in example.guesses]
        np.testing.assert_allclose(shares, probabilities[index][best], rtol=1e-4)
        with PIL.Image.open(io.BytesIO(base64.b64decode(example.png))) as picture:
            pixels = images[index, ..., 0] * dataset.preparation.std + dataset.preparation.mean
            np.testing.assert_allclose(np.asarray(picture), 255 * pixels, atol=0.51)


def test_of_many_images_the_first_are_looked_at(run, dataset, student, monkeypatch):
    monkeypatch.setattr(examination, "_SMALL_COUNT", 200)
    run.examination.unlink()
    examination.examine(run, load_run(run.directory), dataset)
    found = examination.read(run)
    assert (found.images, found.of) == (200, 360)
    images, labels = dataset.examples(200)
    predicted = student.predict(images, verbose=0).argmax(-1)
    assert sum(c.images for c in found.confusions) == 200
    right = sum(c.images for c in found.confusions if c.label == c.predicted)
    assert right == np.count_nonzero(predicted == labels)


HOSTILE = (
    "<script>document.title='hacked'</script>",
    "</script><script>document.title='hacked'</script>",
    '"><img src=x onerror="document.title=\'hacked\'">',
    "{{ 7 * 7 }} {% raw %} &lt; 'a' \u2028 \\",
    "image",
    "datum[0].value",
    "<!--",
    "__proto__",
    "same",
    "same",
)


def test_what_comes_from_data_stays_text(run, browser):
    renamed = Run(run.directory.rename(run.directory.with_name("<b onclick=x>'\"&amp;")))
    found = exports.read_json(renamed.examination)
    found["class_names"] = list(HOSTILE)
    for number, example in enumerate(found["examples"]):
        example["name"] = example["guesses"][0]["name"] = HOSTILE[number % 10]
    renamed.examination.write_text(json.dumps(found))
    text = json.dumps({HOSTILE[number]: renamed.read_metrics() for number in range(8)})
    renamed.compared.write_text(text)
    renamed.left_out.write_text(
        json.dumps({HOSTILE[0]: [{"name": HOSTILE[1], "reason": HOSTILE[2]}]})
    )
    renamed.analysis.write_text(json.dumps([{"plot": "loss.png", "caption": HOSTILE[2]}]))
    report.write(renamed, load_run(renamed.directory))
    browser.open(renamed.page)
    assert browser.messages() == []
    assert browser.driver.title == "reactnet18 on digits"
    assert browser.run("return document.querySelectorAll('script').length") == 2 + 5
    names = " ".join(browser.texts(".example figcaption"))
    told = browser.texts(".drawn:first-child .role-legend-label text")
    for text in map(str.split, HOSTILE):
        assert " ".join(text) in names
    for name in HOSTILE[:8]:
        assert any(label.startswith(" ".join(name.split())[:12]) for label in told)  # cut
    assert renamed.directory.name in browser.texts("footer")[0]
    figure = browser.driver.find_element(By.CSS_SELECTOR, ".drawn svg")
    hover(browser, figure, 40)
    browser.wait("return document.querySelector('#vg-tooltip-element.visible')")
    keys = browser.texts("#vg-tooltip-element td.key")
    assert set(keys) == {"epoch"} | {
        f"{' '.join(name.split())}, {kind}"
        for name in (renamed.directory.name, *HOSTILE[:8])
        for kind in ("test", "training")
    }
    assert browser.driver.title == "reactnet18 on digits"
    assert browser.messages() == []


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("examination.json", None, "The test images were not looked at. --mode=analyze"),
        ("examination.json", b"{", "examination.json: expected what a training wrote"),
        ("examination.json", b'{"a": 1}', "examination.json: expected what a training wrote"),
        ("measurements.csv", None, "Nothing was measured"),
        ("measurements.csv", b"a,b\n1,2\n", "measurements.csv: expected the table"),
        (
            "measurements.csv",
            b"step,epoch,layer,saturation\n1,1,block1_conv3x3,much\n",
            "measurements.csv: expected numbers",
        ),
        ("compared.json", b"[1]", "compared.json: expected the curves"),
        ("compared.json", b'{"other": [{"loss": 1.0}]}', "expected a step and an epoch"),
        ("export.json", None, "There is no .tflite; --mode=export"),
        ("model.tflite", None, "model.tflite is not there: export it again"),
        ("model.tflite", b"TFL3", "model.tflite is another file, or damaged: export it again"),
        ("metrics.csv", None, "There are no curves"),
        ("plots/accuracy.png", None, "reactnet18 on digits"),
        ("compared.json", None, "reactnet18 on digits"),
    ],
)
def test_what_is_missing_leaves_its_part_out(name, damage, told, run):
    path = run.directory / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    report.write(run, load_run(run.directory))
    text = run.page.read_text()
    assert told in text
    for part in ("result", "curves", "layers", "export", "images", "settings"):
        assert f'<section id="{part}">' in text


def test_other_weights_than_were_looked_at_are_told(run):
    found = exports.read_json(run.examination)
    run.examination.write_text(json.dumps({**found, "weights_sha256": "0"}))
    report.write(run, load_run(run.directory))
    assert "looked at with other weights" in run.page.read_text()


def test_labels_outside_of_the_classes_are_told(run):
    found = exports.read_json(run.examination)
    found["confusions"][0]["predicted"] = 10
    run.examination.write_text(json.dumps(found))
    report.write(run, load_run(run.directory))
    assert "expected labels below 10; received" in run.page.read_text()


def test_settings_that_differ_from_their_defaults_come_first(made):
    text = made.page.read_text()
    changed, _, others = text.partition('<section id="settings">')[2].partition("<details>")
    assert "--image_size" in changed and "--image_size" not in others
    assert "--optimizer=adam" in others and "--optimizer" not in changed
    assert changed.count("<code>") + others.count("<code>") == len(load_run(made.directory).lines())


def test_of_many_classes_the_confusions_are_listed(made):
    found = examination.read(made)
    names = [f"class {label % 40}" for label in range(41)]
    confusions = [
        examination.Confusion(label, other, label + 2 * (other == 40))
        for label in range(1, 41)
        for other in (0, label, 40)
    ]
    many = dataclasses.replace(found, class_names=names, confusions=confusions)
    assert render._matrix(many) is None
    table = render._confused(many)
    assert len(table.rows) == 20
    first, second, *_ = ([cell.text for cell in row] for row in table.rows)
    assert first == ["class 39", "class 0 (40)", "41"]
    assert second == ["class 38", "class 0 (40)", "40"]


def test_values_that_are_not_finite_are_left_out_of_figures():
    rows = [
        {"step": 1, "epoch": 1, "loss": 2.0, "val_loss": 3.0},
        {"step": 1, "epoch": 2, "loss": float("inf"), "val_loss": float("nan")},
        {"step": 2, "epoch": 1, "loss": 1.0},
    ]
    figure = charts.curves({"run": rows}, "loss", split="test", title="loss")
    points = [(p["series"], p["epoch"], p["value"]) for p in figure["data"]["values"]]
    assert points == [("test loss", 1, 3.0), ("training loss", 1, 2.0), ("training loss", 3, 1.0)]
    begins = [layer["data"]["values"] for layer in figure["layer"] if "data" in layer]
    assert [values[0]["epoch"] for values in begins] == [2.5, 2.5]
