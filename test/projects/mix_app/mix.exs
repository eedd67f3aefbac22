defmodule MixApp.MixProject do
  use Mix.Project

  def project do
    [
      app: :mix_app,
      version: "0.1.0",
      elixir: "~> 1.14",
      deps: deps(),
      releases: [mix_app: [include_executables_for: [:unix]]]
    ]
  end

  def application, do: []

  # `manager: :rebar3` is what Mix would find out by itself.
  defp deps do
    [{:chatter, path: System.get_env("CHATTER_PATH", "../../.."), manager: :rebar3}]
  end
end
