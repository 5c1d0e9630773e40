"""A module of 3D Slicer: a volume of the scene is translated to another domain by federated diffusion models.

`translate_volume` needs no window; the panel calls it. Volumes pass through NRRD files of Slicer's own storage nodes,
so a result lies where its source does. In the console, `slicer.util.pip_install("CHECKOUT")` installs the client.
"""

import contextlib
import json
import tempfile
from pathlib import Path

import slicer

import ddib_fed

try:
    import ctk
    import qt
    from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget
except ImportError:  # without windows, as in slicer-core
    ScriptedLoadableModule = ScriptedLoadableModuleWidget = object

RECORD = "DDIB.record"
SYNTHETIC = "DDIB.synthetic"


class Told(ddib_fed.Progress):
    """Hands progress on as (share done, sentence)."""

    def __init__(self, tell):
        self._tell, self._items, self._ended = tell, 0, 0

    def parts(self, number, paths):
        self._items = len(paths)

    def written(self, result):
        self._ended += 1
        self._tell(self._ended / max(self._items, 1), f"slice {self._ended} of {self._items}")

    def say(self, line):
        self._tell(None, line)

    def counted(self, what):
        self._tell(None, what)
        return contextlib.nullcontext(lambda done, total: None)


def translate_volume(volume, via, target, request=None, *, slices="auto", tell=lambda share, line: None):
    """Translate a volume node; return a new node of the same scene and geometry.

    Parameters
    ----------
    volume : vtkMRMLScalarVolumeNode
    via : ddib_fed.Profile or ddib_fed.Client
        Of an own source node; or ``model.to(other)``, two models of this process.
    target : str
        INSTITUTION/DOMAIN, as `ddib domains` lists it.
    request : ddib_fed.Request
    slices : str
        The plane in which the volume is cut: auto, axial, coronal or sagittal.
    tell : callable
        Called with (share done or None, sentence).

    Raises
    ------
    ddib_fed.DdibError
        What cannot be translated, in words, with a hint; nothing is added to the scene then.
    """
    with tempfile.TemporaryDirectory(prefix="ddib-slicer-") as place:
        given, out = Path(place) / "volume.nrrd", Path(place) / "out"
        _store(volume, given)
        run = ddib_fed.Run(via, target, out, request or ddib_fed.Request(), Told(tell))
        run.open([given], slices=slices)
        run.read()
        run.translate()
        run.conclude()
        (written,) = run.written
        made = slicer.vtkMRMLScalarVolumeNode()
        made.SetName(f"{volume.GetName()} as {written.provenance.target_domain} (synthetic)")
        made.SetAttribute(SYNTHETIC, "true")
        made.SetAttribute(RECORD, json.dumps(json.loads(written.record.read_text()), separators=(",", ":")))
        storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
        storage.SetFileName(str(written.files[0]))
        if not storage.ReadData(made):
            raise RuntimeError(f"Slicer cannot read {written.files[0].name}")
        if volume.GetScene() is not None:
            volume.GetScene().AddNode(made)
            made.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
            made.CreateDefaultDisplayNodes()
        for line in written.said:
            tell(None, line)
        return made


def _store(volume, path):
    storage = slicer.vtkMRMLNRRDStorageNode()
    storage.SetFileName(str(path))
    if volume.GetImageData() is None or not storage.WriteData(volume):
        raise ddib_fed.DdibError(
            f"{volume.GetName()} has no voxels to translate", hint="choose another volume"
        )


class DDIBTranslate(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "DDIB Translate"
        parent.categories = ["Converters"]
        parent.contributors = ["The ddib-fed founders"]
        parent.helpText = (
            "Translates a volume to the domain of another institution, which gets a latent and never the volume. "
            "The result is synthetic: it is no acquisition, and its record says what made it."
        )
        parent.acknowledgementText = "Dual Diffusion Implicit Bridges (Su, Song, Meng, Ermon, ICLR 2023)."


class DDIBTranslateWidget(ScriptedLoadableModuleWidget):
    def setup(self):
        super().setup()
        form = qt.QFormLayout()
        self.layout.addLayout(form)
        self.volume = slicer.qMRMLNodeComboBox()
        self.volume.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.volume.addEnabled = self.volume.removeEnabled = False
        self.volume.setMRMLScene(slicer.mrmlScene)
        form.addRow("Volume", self.volume)
        self.profile = ctk.ctkPathLineEdit()
        self.profile.toolTip = "client.toml, from `ddib init client`; empty: the usual places"
        form.addRow("Profile", self.profile)
        self.target = qt.QComboBox()
        self.target.editable = True
        self.target.toolTip = "INSTITUTION/DOMAIN"
        form.addRow("Target", self.target)
        look = qt.QPushButton("List targets")
        look.connect("clicked()", lambda: self._guarded(self._list))
        form.addRow("", look)
        self.evaluations = qt.QSpinBox()
        self.evaluations.setRange(8, 1000)
        self.evaluations.value = 24
        form.addRow("Evaluations of a leg", self.evaluations)
        self.slices = qt.QComboBox()
        self.slices.addItems(["auto", "axial", "coronal", "sagittal"])
        form.addRow("Slices", self.slices)
        self.apply = qt.QPushButton("Translate")
        self.apply.connect("clicked()", lambda: self._guarded(self._translate))
        form.addRow("", self.apply)
        self.bar = qt.QProgressBar()
        form.addRow("", self.bar)
        self.status = qt.QLabel()
        self.status.wordWrap = True
        form.addRow("", self.status)
        self.layout.addStretch(1)

    def _profile(self):
        return ddib_fed.Profile.load(self.profile.currentPath or None)

    def _list(self):
        with ddib_fed.Client(self._profile()) as client:
            found = [f"{each.institution}/{each.domain}" for each in client.domains().domains if each.domain]
        self.target.clear()
        self.target.addItems(found)
        self._tell(None, f"{len(found)} targets")

    def _translate(self):
        request = ddib_fed.Request(ddib_fed.Settings(evaluations=self.evaluations.value))
        made = translate_volume(
            self.volume.currentNode(), self._profile(), self.target.currentText, request,
            slices=self.slices.currentText, tell=self._tell,
        )  # fmt: skip
        slicer.util.setSliceViewerLayers(
            background=self.volume.currentNode(), foreground=made, foregroundOpacity=1
        )
        self._tell(1, f"{made.GetName()}: synthetic, not acquired")

    def _tell(self, share, line):
        if share is not None:
            self.bar.value = round(100 * share)
        self.status.text = line
        slicer.app.processEvents()

    def _guarded(self, act):
        """Do something; a refusal becomes a sentence, with what helps."""
        self.apply.enabled = False
        try:
            act()
        except ddib_fed.DdibError as error:
            self._tell(0, f"{error.detail}\n{error.hint}")
        finally:
            self.apply.enabled = True
