%% An epmd module that alone knows where nodes are: at 127.0.0.1, on the port that is in the
%% environment. Used by chatter_stock_SUITE.
-module(chatter_epmd_elsewhere).

-export([start_link/0, register_node/2, register_node/3, port_please/2, port_please/3,
         address_please/3, names/1]).

start_link() -> ignore.

register_node(Name, Port) -> register_node(Name, Port, inet).

register_node(_Name, _Port, _Family) -> {ok, 1 + rand:uniform(1000)}.

port_please(Name, Host) -> port_please(Name, Host, infinity).

port_please(_Name, _Host, _Timeout) ->
    {port, list_to_integer(os:getenv("ELSEWHERE_PORT")), 6}.

address_please(_Name, _Host, inet) -> {ok, {127, 0, 0, 1}}.

names(_Host) -> {error, address}.
