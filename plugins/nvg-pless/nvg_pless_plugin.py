"""What nvg imports to learn the name; Numba is imported with the sampler, when that is used."""

from nvg import hookimpl


@hookimpl
def nvg_register_samplers(register):
    register("pless", "nvg_pless:PLess")
