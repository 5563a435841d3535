"""What a user can set for a training run, with units and defaults.

The descriptions of the fields are the documentation: ``train-potential --help`` prints them. Reading
files, presets and ``key=value`` overrides is in :mod:`training.config_io`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int | float, Field(ge=0)]
PositiveAmount = Annotated[int | float, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the configuration: immutable, and refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetConfig(Section):
    """Which labelled geometries to learn from, and how to divide them."""

    source: str = Field(
        description="rmd17:<molecule>, md17:<molecule>, ccsd:<molecule>, or a path to an npz, to any "
        "file that ASE reads (extxyz, db, traj ...) or to a folder of DeePMD-kit"
    )
    split: Annotated[int, Field(ge=1, le=5)] = Field(
        default=1, description="number of the published split, for sets that come with splits"
    )
    train: PositiveAmount | None = Field(
        default=None,
        description="training frames, as a number or a fraction between 0 and 1; empty: 950 of a "
        "published set, of one's own file what validation and test leave",
    )
    valid: Amount | None = Field(
        default=None,
        description="validation frames, likewise; empty: 50 of a published set, else a tenth",
    )
    test: Amount | None = Field(
        default=None,
        description="test frames, likewise; empty: the published test part, else a tenth",
    )
    split_seed: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="fixes which frames these are; empty: seed does, and runs with other seeds have other "
        "frames, which members of a committee should not",
    )
    valid_file: str | None = Field(
        default=None, description="file of validation frames, instead of a part of source"
    )
    test_file: str | None = Field(
        default=None, description="file of test frames, instead of a part of source"
    )
    isolated_atoms_file: str | None = Field(
        default=None,
        description="file with the energies of isolated atoms, if they are not in source",
    )
    energy_unit: str | None = Field(
        default=None,
        description="unit of the energies in the file: eV, meV, kcal/mol, kJ/mol, Hartree, Rydberg; "
        "empty: what the file's format says",
    )
    length_unit: str | None = Field(
        default=None,
        description="unit of the positions in the file: Angstrom, nm, Bohr; empty: as above",
    )
    forces_unit: str | None = Field(
        default=None,
        description="unit of the forces in the file, such as eV/Angstrom or Hartree/Bohr; empty: "
        "energy_unit/length_unit",
    )
    energy_key: str | None = Field(
        default=None,
        description="name of the energies in the file, such as REF_energy; empty: ASE's energy",
    )
    forces_key: str | None = Field(
        default=None,
        description="name of the forces in the file, such as REF_forces; empty: ASE's forces",
    )
    stress_key: str | None = Field(
        default=None,
        description="name of the stresses in the file, such as REF_stress, or of the virials, if virial is "
        "a part of the name; empty: ASE's stress",
    )
    reference_energies: dict[str, float] | None = Field(
        default=None,
        description="energy of each isolated atom in eV, such as {H: -13.6, O: -2041.8}; empty: "
        "isolated atoms in the file if there are any, else a least-squares fit",
    )
    allow_unusual: bool = Field(
        default=False,
        description="train although the units of the file look wrong (a warning instead)",
    )
    cache_dir: str | None = Field(
        default=None,
        description="folder for downloaded sets; empty: the usual cache folder of the system",
    )


class ModelConfig(Section):
    """The network."""

    name: Literal["hegnn", "hegnn-published", "egnn"] = Field(
        default="hegnn",
        description="hegnn (many steerable channels per degree), hegnn-published (one per degree, as "
        "in the paper), egnn (distances only)",
    )
    cutoff: PositiveFloat = Field(
        default=5.0, description="distance beyond which atoms do not interact, Å"
    )
    layers: Count = Field(default=3, description="interaction layers")
    features: Count = Field(default=64, description="scalar features per atom")
    channels: Count = Field(default=16, description="steerable channels per degree (hegnn only)")
    lmax: Annotated[int, Field(ge=1, le=6)] = Field(
        default=3, description="highest degree of the spherical harmonics (not for egnn)"
    )
    radial: Count = Field(default=8, description="radial basis functions")
    tensor_product: bool = Field(
        default=False,
        description="multiply the steerable features of each atom with each other (hegnn only): a higher "
        "body order, for a quarter to a third more time",
    )

    @model_validator(mode="after")
    def _products_of_degrees(self) -> "ModelConfig":
        if self.tensor_product and (self.name != "hegnn" or self.lmax < 2):
            raise ValueError("tensor_product is for name=hegnn with lmax=2 or more")
        return self


class TrainingConfig(Section):
    """The optimisation."""

    epochs: Count = Field(
        default=200, description="passes over the training frames, unless minutes are given"
    )
    minutes: PositiveFloat | None = Field(
        default=None,
        description="train for so long instead of for a number of epochs; cosine falls with time",
    )
    batch_size: Count = Field(default=5, description="frames per step (on each device)")
    optimizer: Literal["muon", "adamw"] = Field(
        default="muon",
        description="muon (weight matrices by orthogonalised momentum, the rest by AdamW), adamw "
        "(everything by AdamW with AMSGrad; try learning_rate=2e-3)",
    )
    learning_rate: PositiveFloat | None = Field(
        default=None,
        description="largest learning rate; empty: 5e-3 from random weights, 1e-3 from trained "
        "ones, 2.5e-4 from trained ones with fewer than 200 frames, the latter two times 64/features "
        "for more than 64 features",
    )
    final_learning_rate: Weight = Field(
        default=1e-5, description="learning rate at which cosine ends and plateau stops falling"
    )
    schedule: Literal["cosine", "plateau", "constant"] = Field(
        default="cosine",
        description="course of the learning rate: cosine to the end of training, plateau (falls when "
        "the validation loss stalls), constant",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        default=100,
        description="steps of linear rise to learning_rate, at most a tenth of all steps",
    )
    plateau_epochs: Count = Field(
        default=25, description="epochs without improvement before plateau lowers the learning rate"
    )
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.8, description="what plateau multiplies the learning rate by"
    )
    weight_decay: Weight = Field(
        default=0.0, description="decay of weight matrices, as AdamW defines it"
    )
    loss: Literal["mse", "huber", "l1"] = Field(
        default="l1",
        description="mse (squares), huber (squares up to huber_delta, then linear), l1 (absolute "
        "energies, lengths of force vectors)",
    )
    huber_delta: PositiveFloat = Field(
        default=0.05, description="where huber turns linear, eV per atom and eV/Å"
    )
    energy_weight: Weight = Field(
        default=1.0, description="weight of the loss of energies, taken in eV per atom"
    )
    forces_weight: Weight = Field(default=1.0, description="weight of the loss of forces, in eV/Å")
    stress_weight: Weight = Field(
        default=1.0,
        description="weight of the loss of stresses where the data have them, taken times the volume per "
        "atom, in eV",
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999,
        description="memory of the running average of the weights that is validated and kept; "
        "0: no averaging",
    )
    gradient_clip: Weight = Field(
        default=10.0, description="largest norm of the gradient; 0: no limit"
    )
    patience: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="epochs without a better validation loss before training stops; 0: never",
    )
    validate_every: Count | None = Field(
        default=None,
        description="epochs between validations (and checkpoints); empty: so many that about a hundred "
        "steps lie between, on a GPU a thousand",
    )

    @model_validator(mode="after")
    def _some_loss(self) -> "TrainingConfig":
        if self.energy_weight == 0 and self.forces_weight == 0:
            raise ValueError(
                "energy_weight and forces_weight are both 0: there is nothing to learn"
            )
        return self


class HardwareConfig(Section):
    """What to run on."""

    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="auto (a CUDA GPU if there is one), cpu, gpu"
    )
    devices: Count = Field(
        default=1, description="GPUs (or processes on the CPU) to share each step"
    )
    strategy: str = Field(
        default="auto", description="Lightning's strategy for several devices, such as ddp"
    )
    precision: Literal["float32", "float64"] = Field(
        default="float32",
        description="of the network; positions and energies are float64 in either case",
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        default=0, description="CPU threads; 0: torch's own choice"
    )
    compile: bool | None = Field(
        default=None,
        description="compile the training step into one function, two to three times as fast on a "
        "CPU; takes a C++ compiler and one to two minutes, once for each architecture. On a GPU "
        "the optimizer's part is in it, batches are filled up to one size, and the whole is recorded as a "
        "CUDA graph. Empty: where that pays",
    )


class TrainConfig(Section):
    """Everything that defines a run."""

    name: str = Field(
        default="",
        pattern=r"^(\w[\w.+-]*)?$",
        description="name of the run's folder: letters, digits and . _ + -; empty: named after the "
        "preset or the data",
    )
    output: str = Field(default="runs", description="folder that receives the run's folder")
    start: str = Field(
        default="auto",
        min_length=1,
        description="what training starts from: auto (the pretrained weights of the package where "
        "elements and model allow, else random ones), pretrained, large (those of a larger network: "
        "lower errors for two to three times the time), scratch (random weights), or the folder or "
        "potential.safetensors of another run; what model leaves open is that of the weights",
    )
    xtb_frames: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="geometries around the training frames to label with GFN2-xTB and learn first; pays "
        "where your frames are few, try 2000 (needs tblite). It takes 70 % of minutes, or 20 "
        "epochs besides yours",
    )
    xtb_charge: int = Field(default=0, description="charge of the molecules for GFN2-xTB, e")
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="fixes the initial weights, the order of frames, and the choice of frames (but for "
        "dataset.split_seed)",
    )
    dataset: DatasetConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    hardware: HardwareConfig = HardwareConfig()

    @field_validator("output")
    @classmethod
    def _at_home(cls, output: str) -> str:
        return str(Path(output).expanduser())

    @model_validator(mode="after")
    def _validation_where_needed(self) -> "TrainConfig":
        if self.dataset.valid == 0 and (
            self.training.patience or self.training.schedule == "plateau"
        ):
            raise ValueError(
                "training.patience and training.schedule=plateau watch the validation loss, "
                "but dataset.valid is 0"
            )
        return self


def architecture(config: ModelConfig) -> dict[str, str | int | float]:
    """The keys that this model has, for :func:`forcefield.build_potential`."""
    values = config.model_dump()
    only_hegnn = {"channels", "tensor_product"}
    unused = {"egnn": only_hegnn | {"lmax"}, "hegnn-published": only_hegnn}.get(config.name, set())
    return {key: value for key, value in values.items() if key not in unused}
