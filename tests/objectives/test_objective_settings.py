"""What ``objective(...)`` checks once: names, parameters, particles, schedules, warm starts."""

import dataclasses
import math
import pickle

import jax
import numpy as np
import pytest

from bayesdiv.divergences import (
    FDivergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    get_divergence,
    list_divergences,
)
from bayesdiv.objectives import (
    GivenNormalizer,
    LinearSchedule,
    ObjectiveSettings,
    RenyiBound,
    RunningNormalizer,
    SelfNormalizer,
    TailAdaptive,
    get_objective,
    importance_weighted,
    is_two_sample,
    linear_schedule,
    list_objectives,
)

LOG_WEIGHT_NAMES = [name for name in list_objectives() if not is_two_sample(name)]


class TestNames:
    def test_every_divergence_and_bound_is_listed_once(self):
        names = list_objectives()
        assert len(names) == len(set(names))
        assert set(names) == {*list_divergences(), "renyi", "iwae", "tail_adaptive"}

    @pytest.mark.parametrize("name", LOG_WEIGHT_NAMES)
    def test_every_name_builds_and_its_object_passes_through(self, name):
        built = get_objective(name)
        assert get_objective(built) is built
        assert not is_two_sample(built)

    def test_parameters_reach_the_object(self):
        assert get_objective("alpha", order=0.3) == get_divergence("alpha", order=0.3)
        assert get_objective("renyi", order=2) == RenyiBound(2)
        assert get_objective("tail_adaptive", exponent=-0.5) == TailAdaptive(-0.5)
        assert get_objective("iwae") == importance_weighted()

    def test_two_sample_names_are_told_apart(self):
        for name in list_divergences("two_sample"):
            assert is_two_sample(name)
        assert not is_two_sample("forward_kl")
        assert not is_two_sample("no such name")
        assert not is_two_sample(None)

    @pytest.mark.parametrize(
        ("arguments", "parameters", "error", "message"),
        [
            (["elbo"], {}, ValueError, "objective must be one of reverse_kl, .*renyi.*got 'elbo'"),
            ([3], {}, TypeError, "objective must be a name, an FDivergence.*got 3 of type int"),
            (
                ["iwae"],
                {"order": 0.5},
                ValueError,
                "'iwae' has no parameter 'order'; it takes none",
            ),
            (
                ["renyi"],
                {"alpha": 1},
                ValueError,
                "'renyi' has no parameter 'alpha'; .*takes order",
            ),
            (["forward_kl"], {"order": 1}, ValueError, "'forward_kl' has no parameter 'order'"),
            (["renyi"], {"order": 1.0}, ValueError, "order must not be 1, .* use 'reverse_kl'"),
            (["renyi"], {"order": math.inf}, ValueError, "order must be finite, got inf"),
            (["renyi"], {"order": "0.5"}, TypeError, "order must be a number, got '0.5'"),
            (["alpha"], {"order": 1.0}, ValueError, "order must be neither 0 nor 1, got 1.0"),
            (["tail_adaptive"], {"exponent": 0.0}, ValueError, r"exponent must be in \[-1, 0\)"),
            ([RenyiBound()], {"order": 2}, TypeError, r"\['order'\] were given beside the object"),
            ([ForwardKL()], {"order": 2}, TypeError, r"\['order'\] were given beside the object"),
        ],
    )
    def test_bad_names_and_parameters(self, arguments, parameters, error, message):
        with pytest.raises(error, match=message):
            get_objective(*arguments, **parameters)


class TestDefaults:
    @pytest.mark.parametrize("name", LOG_WEIGHT_NAMES)
    def test_particles(self, name):
        assert ObjectiveSettings(name).count == (1 if name == "reverse_kl" else 16)
        assert ObjectiveSettings(name, num_particles=5).count == 5

    def test_a_baseline_needs_several_particles(self):
        assert ObjectiveSettings("reverse_kl", gradient="score").count == 16

    def test_scaled_reverse_kl_counts_as_reverse_kl(self):
        settings = ObjectiveSettings(2.0 * ReverseKL())
        assert settings.count == 1
        assert settings.is_linear
        assert not ObjectiveSettings(ReverseKL() + ForwardKL()).is_linear

    @pytest.mark.parametrize(
        ("objective", "gradient"),
        [
            ("reverse_kl", "reparam"),
            (0.5 * ReverseKL(), "reparam"),
            ("forward_kl", "path"),
            ("iwae", "path"),
            ("tail_adaptive", "path"),
            ("total_variation", "score"),
            (get_divergence("total_variation") + ForwardKL(), "score"),
        ],
    )
    def test_auto_gradient(self, objective, gradient):
        settings = ObjectiveSettings(objective)
        assert settings.resolve_gradient(settings.at(0)) == gradient

    def test_a_chosen_gradient_stays(self):
        settings = ObjectiveSettings("reverse_kl", gradient="path")
        assert settings.resolve_gradient(ReverseKL()) == "path"

    def test_normalizers_by_name(self):
        assert ObjectiveSettings("forward_kl").normalizer == SelfNormalizer()
        assert ObjectiveSettings("forward_kl", normalizer=2).normalizer == GivenNormalizer(2)
        running = ObjectiveSettings("forward_kl", normalizer="running")
        assert running.normalizer == RunningNormalizer()
        assert running.is_stateful

    def test_plain_objectives_keep_no_state(self):
        assert not ObjectiveSettings("forward_kl").is_stateful


class TestWarmupAndSchedules:
    def test_reverse_kl_runs_first(self):
        settings = ObjectiveSettings("jensen_shannon", warmup=3)
        assert [settings.current(step) for step in range(5)] == [ReverseKL()] * 3 + [
            JensenShannon()
        ] * 2
        assert settings.is_stateful

    def test_a_callable_parameter_is_a_schedule(self):
        settings = ObjectiveSettings("renyi", {"order": lambda step: 0.9 - 0.1 * step})
        assert settings.has_schedule
        assert settings.is_stateful
        assert settings.at(4) == RenyiBound(0.9 - 0.1 * 4)

    def test_the_step_counts_the_warm_start(self):
        order = linear_schedule(0.1, 0.5, 10)
        settings = ObjectiveSettings("alpha", {"order": order}, warmup=5)
        assert settings.current(5) == get_divergence("alpha", order=order(5))

    def test_linear_schedule_goes_from_start_to_end_and_stays(self):
        order = linear_schedule(0.25, 0.75, 4)
        assert [order(step) for step in (0, 1, 2, 4, 100)] == [0.25, 0.375, 0.5, 0.75, 0.75]
        assert order == LinearSchedule(0.25, 0.75, 4)

    def test_linear_schedule_of_a_traced_step(self):
        order = linear_schedule(0.25, 0.75, 4)
        steps = jax.numpy.arange(8)
        np.testing.assert_allclose(
            jax.jit(jax.vmap(order))(steps), [order(step) for step in range(8)], rtol=1e-6
        )

    @pytest.mark.parametrize("num_steps", [0, -3, 0.5, None])
    def test_linear_schedule_needs_steps(self, num_steps):
        with pytest.raises(ValueError, match=f"num_steps must be at least 1, got {num_steps}"):
            linear_schedule(0.0, 1.0, num_steps)

    def test_linear_schedule_needs_numbers(self):
        with pytest.raises(ValueError, match="end must be finite, got nan"):
            linear_schedule(0.0, math.nan, 3)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"gradient": "pathwise"}, "gradient must be 'auto', 'path', .* got 'pathwise'"),
            ({"warmup": -1}, "warmup must be a number of steps >= 0, got -1"),
            ({"warmup": 1.5}, "warmup must be a number of steps >= 0, got 1.5"),
            ({"warmup": True}, "warmup must be a number of steps >= 0, got True"),
            ({"num_particles": 0}, "num_particles must be an integer >= 1, got 0"),
            ({"num_particles": 2.5}, "num_particles must be an integer >= 1, got 2.5"),
            ({"num_particles": True}, "num_particles must be an integer >= 1, got True"),
            ({"normalizer": "own"}, "normalizer must be 'self', 'running' or a known log Z"),
            (
                {"num_particles": 1, "gradient": "score"},
                "num_particles must be at least 2 for the leave-one-out baseline, got 1",
            ),
        ],
    )
    def test_settings_of_any_objective(self, options, message):
        with pytest.raises(ValueError, match=message):
            ObjectiveSettings("forward_kl", **options)

    def test_total_variation_has_no_path_gradient(self):
        message = "gradient='path' does not exist for TotalVariation.*use gradient='score'"
        with pytest.raises(ValueError, match=message):
            ObjectiveSettings("total_variation", gradient="path")
        with pytest.raises(ValueError, match="at least 2 for the leave-one-out baseline, got 1"):
            ObjectiveSettings("total_variation", num_particles=1)

    def test_tail_adaptive_has_only_a_path_gradient(self):
        for gradient in ("score", "reparam"):
            with pytest.raises(ValueError, match=f"TailAdaptive .* has no '{gradient}' gradient"):
                ObjectiveSettings("tail_adaptive", gradient=gradient)
        with pytest.raises(ValueError, match="at least 2 for TailAdaptive, got 1"):
            ObjectiveSettings("tail_adaptive", num_particles=1)

    def test_a_two_sample_divergence_does_not_act_on_log_weights(self):
        with pytest.raises(TypeError, match="compares samples, not log-ratios"):
            ObjectiveSettings("sliced_wasserstein")

    def test_a_schedule_is_checked_where_it_starts(self):
        with pytest.raises(ValueError, match="order must be neither 0 nor 1, got 0.0"):
            ObjectiveSettings("alpha", {"order": linear_schedule(0.0, 0.9, 10)})


class TestObject:
    SETTINGS = ObjectiveSettings(
        "alpha", {"order": linear_schedule(0.2, 0.8, 50)}, normalizer="running", warmup=10
    )

    def test_pickles(self):
        assert pickle.loads(pickle.dumps(self.SETTINGS)) == self.SETTINGS

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            self.SETTINGS.warmup = 3

    def test_replace_checks_again(self):
        assert dataclasses.replace(self.SETTINGS, warmup=3).warmup == 3
        with pytest.raises(ValueError, match="warmup"):
            dataclasses.replace(self.SETTINGS, warmup=-3)

    def test_takes_a_divergence_of_the_users_own(self):
        mine = FDivergence.from_generator(lambda u: (u - 1.0) ** 2, name="mine")
        settings = ObjectiveSettings(mine)
        assert settings.at(7) is mine
        assert settings.count == 16
