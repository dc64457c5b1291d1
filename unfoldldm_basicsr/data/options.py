"""What the option file says about a data set of this package: the keys that all have."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, Tuple, count
from unfoldldm_basicsr.common.sections import LoaderOptions, Positive
from unfoldldm_basicsr.common.suggest import did_you_mean

Root = Annotated[str, Field(min_length=1)]


class DatasetOptions(LoaderOptions):
    """A data set of degraded and clean images of equal size."""

    color: Literal['rgb', 'grey', 'y'] = 'rgb'
    """Channels of the images: rgb; grey, one channel, grey files as they are and the luminance
    (0 to 255) of colour files; y, one channel, the luma (16 to 235) that BasicSR means by it."""
    gt_size: Positive | None = Field(None, validate_default=True)
    """Training: side of the patches in pixels."""
    use_hflip: bool = True
    """Training: random mirroring."""
    use_rot: bool = True
    """Training: random turns by 90 degrees."""
    repeat: count(ge=1, le=10_000_000) = 1
    """Training: how many times an epoch sees each image."""
    seed: count(ge=0) = 0
    """Seed of the degradations in validation."""
    center_crop: Positive | None = None
    """Validation: use only the central square of this side."""
    crop_multiple: Positive | None = None
    """Validation: crop centrally to a multiple of this size."""
    degradation_names: Tuple[str] | None = None
    """All classes of the run, in order of their index."""
    degradation_name: str | None = Field(None, validate_default=True)
    """Class of this set, one of degradation_names."""

    @property
    def channels(self) -> int:
        """Of the images that the data set gives."""
        return 3 if self.color == 'rgb' else 1

    @field_validator('scale')
    @classmethod
    def _equal_sizes(cls, scale: int) -> int:
        if scale != 1:
            raise ValueError(f'is {scale}, but these data sets give lq and gt of equal size: 1.')
        return scale

    @field_validator('gt_size')
    @classmethod
    def _patches(cls, size: int | None, info: ValidationInfo) -> int | None:
        in_parts = 'sets' in cls.model_fields  # which may have it, each
        if size is None and info.data.get('phase') == 'train' and not in_parts:
            raise ValueError('is missing: the side of the training patches in pixels.')
        return size

    @field_validator('center_crop', 'crop_multiple')
    @classmethod
    def _whole_images(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and info.data.get('phase') == 'train':
            raise ValueError('is for validation; training patches have gt_size.')
        return size

    @field_validator('repeat')
    @classmethod
    def _once(cls, repeat: int, info: ValidationInfo) -> int:
        if repeat != 1 and info.data.get('phase') in ('val', 'test'):
            raise ValueError('is for training; validation sees every image once.')
        return repeat

    @field_validator('degradation_names')
    @classmethod
    def _classes(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f'must be a list of different names, got {list(names)}.')
        return names

    @field_validator('degradation_name')
    @classmethod
    def _one_of_the_classes(cls, name: str | None, info: ValidationInfo) -> str | None:
        names = info.data.get('degradation_names')
        if names and name is None:
            raise ValueError(f'is missing: which of {", ".join(names)} this set is.')
        if names and name not in names:
            raise ValueError(f"'{name}' is no class.{did_you_mean(name, names)}")
        return name


def title(values: Any, cls: type) -> str:
    """What errors call a data set; ``values`` are options or a section."""
    name = values.name if isinstance(values, Options) else values.get('name')
    return f'dataset {name or "without a name"} ({cls.__name__})'


@contextmanager
def at_key(owner: str, key: str) -> Iterator[None]:
    """Raises what goes wrong in the block as OptionError at ``key`` of ``owner``."""
    try:
        yield
    except OptionError as error:
        problems = [Problem(f'{key}.{path}', text) for path, text, *_ in error.problems]
        raise OptionError(owner, problems) from error
    except (OSError, ValueError) as error:
        raise OptionError(owner, [Problem(key, str(error))]) from error
