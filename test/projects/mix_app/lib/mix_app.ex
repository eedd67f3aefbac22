defmodule MixApp do
  @moduledoc "What chatter_boot_SUITE asks two nodes of a Mix project to do."

  @doc "Says that this node is up, and waits until somebody ends it."
  def wait do
    IO.puts("ready #{node()}")
    Process.sleep(:infinity)
  end

  @doc "Pings another node, calls it, and looks at the network; returns normally if all is well."
  def meet(other) do
    :pong = Node.ping(other)
    ^other = :erpc.call(other, :erlang, :node, [])
    true = other in Node.list()
    true = other in :chatter.nodes()
    IO.puts("met #{other} from #{node()}")
  end
end
